import { url } from './client'
import { clock } from './clock'
import { Store } from './store'
import { EventStream, type Link, type Source } from './stream'
import type { TraceChange, TraceStep } from './types'

/** Changes that the page keeps. */
export const TRACE_MAX = 300

export type TraceItem =
  | { kind: 'change'; id: string; key: number; change: TraceChange; steps: TraceStep[] }
  | { kind: 'gap'; id: string; key: number; stream: string | null }

export type TraceState = { link: Link; items: readonly TraceItem[]; received: number }

export type TraceFilter = { tenant?: string; table?: string; user?: string; op?: string; row?: string }

/** The newest changes, newest first, each with its steps, which are added in place. */
export class TraceList {
  readonly #items: TraceItem[] = []
  /** Rows of one transaction may share the id of their entry. */
  readonly #byId = new Map<string, { steps: TraceStep[] }[]>()
  #keys = 0
  received = 0

  /** A copy, so that a reader can compare it with the last one. */
  get items(): readonly TraceItem[] {
    return [...this.#items]
  }

  change(change: TraceChange): void {
    this.received += 1
    const item = { kind: 'change' as const, id: change.id, key: this.#keys++, change, steps: [] }
    const same = this.#byId.get(change.id)
    if (same) same.push(item)
    else this.#byId.set(change.id, [item])
    this.#add(item)
  }

  step(step: TraceStep): void {
    for (const item of this.#byId.get(step.id) ?? []) item.steps.push(step)
  }

  gap(stream: string | null): void {
    this.#add({ kind: 'gap', id: '', key: this.#keys++, stream })
  }

  clear(): void {
    this.#items.length = 0
    this.#byId.clear()
  }

  #add(item: TraceItem): void {
    this.#items.unshift(item)
    const removed = this.#items.length > TRACE_MAX ? this.#items.pop() : undefined
    if (removed) this.#byId.delete(removed.id)
  }
}

/** Follows changes until it is closed. Draws are bundled: many changes of a moment are one new state. */
export function followTrace(filter: TraceFilter): { state: Store<TraceState>; clear: () => void; close: () => void } {
  const list = new TraceList()
  const state = new Store<TraceState>({ link: 'connecting', items: [], received: 0 })
  let cancel: (() => void) | null = null
  const changed = (): void => {
    cancel ??= clock.schedule(() => {
      cancel = null
      state.patch({ items: list.items, received: list.received })
    }, 100)
  }
  const stream = new EventStream({
    clock,
    connect: (address) => new EventSource(address) as Source,
    url: url(['trace'], filter),
    silenceMs: null,
    mayRetry: () => Promise.resolve(true),
    onLink: (link) => state.patch({ link }),
    events: {
      change: (data) => {
        list.change(data as TraceChange)
        changed()
      },
      step: (data) => {
        list.step(data as TraceStep)
        changed()
      },
      gap: (data) => {
        const { tenant, stream } = data as { tenant: string | null; stream: string | null }
        list.gap(stream === null ? null : `${tenant}/${stream}`)
        changed()
      },
    },
  })
  stream.start()
  return {
    state,
    clear: () => {
      list.clear()
      changed()
    },
    close: () => {
      cancel?.()
      stream.stop()
    },
  }
}
