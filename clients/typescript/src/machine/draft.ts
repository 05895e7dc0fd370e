import type { Effect, Notice, RowChange, Step } from './effect.js'
import type { Stored } from './event.js'
import type { Item } from '../outbox/item.js'
import { rowName, type Device, type State, type StoredResult, type StoredRow } from './state.js'

const NOTHING: Stored = new Map()

/** A step in the making. It starts from a state that it never changes. */
export class Draft {
  state: State
  readonly rows: Map<string, RowChange> = new Map()
  readonly results: Map<string, StoredResult | null> = new Map()
  readonly effects: Effect[] = []
  clears = false
  readonly #stored: Stored

  constructor(state: State, stored: Stored = NOTHING) {
    this.state = state
    this.#stored = stored
  }

  set(patch: Partial<State>): void {
    this.state = { ...this.state, ...patch }
  }

  device(patch: Partial<Device>): void {
    this.set({ device: { ...this.state.device, ...patch } })
  }

  lane<Name extends 'up' | 'down' | 'auth' | 'live'>(name: Name, patch: Partial<State[Name]>): void {
    this.set({ [name]: { ...this.state[name], ...patch } })
  }

  /** Wants the request of a lane now, whatever has failed before. */
  want(name: 'up' | 'down' | 'auth', wanted = true): void {
    this.lane(name, { wanted, pause: 'none', failures: 0, error: null })
  }

  live(patch: Partial<State['live']>): void {
    this.lane('live', patch)
  }

  closeLive(): void {
    if (this.state.live.status !== 'closed') this.does({ type: 'closeLive' })
    this.live({ status: 'closed' })
  }

  /** Replaces items of the outbox; null removes one. */
  items(replace: (item: Item) => Item | null): void {
    let hasChanged = false
    const outbox: Item[] = []
    for (const item of this.state.outbox) {
      const next = replace(item)
      if (next !== item) hasChanged = true
      if (next) outbox.push(next)
    }
    if (hasChanged) this.set({ outbox })
  }

  /** A row as the user has it. */
  stored(table: string, id: string): StoredRow | null {
    const entry = this.entry(table, id)
    return entry?.isDeleted ? null : entry
  }

  /** The same, or the mark of one that was deleted here. */
  entry(table: string, id: string): StoredRow | null {
    const name = rowName(table, id)
    const changed = this.rows.get(name)
    return changed ? changed[2] : (this.#stored.get(name) ?? null)
  }

  put(table: string, id: string, row: StoredRow | null): void {
    this.rows.set(rowName(table, id), [table, id, row])
  }

  does(effect: Effect): void {
    this.effects.push(effect)
  }

  notify(notice: Notice): void {
    this.does({ type: 'notify', notice })
  }

  /** No request is in flight any more; an answer to one is ignored. */
  abandon(): void {
    if (this.state.busy) this.does({ type: 'abort' })
    this.set({ busy: null, ticket: this.state.ticket + 1 })
  }

  step(): Step {
    return {
      state: this.state,
      rows: [...this.rows.values()],
      results: this.results,
      clears: this.clears,
      effects: this.effects,
    }
  }
}
