import type { Step } from '../machine/effect.js'
import type { RowId } from '../machine/event.js'
import { EMPTY_DEVICE, type Device, type StoredResult, type StoredRow } from '../machine/state.js'
import { difference, reuse } from '../outbox/difference.js'
import type { Item } from '../outbox/item.js'
import type { Entry, Op, Check, Read, Store } from '../store/store.js'

/** Results that no tab may still wait for are deleted beyond this number. */
const RESULTS_MAX = 500

/**
 * The client's records in the storage. Three counters in `meta` make each step a transaction on what it has read: `n` counts
 * changes of device and rows, `rev` those of the outbox, and `term` the leaders. A step whose counters have moved is not
 * stored; a former leader that continues after a pause therefore stores nothing.
 */
export class Ledger {
  device: Device = EMPTY_DEVICE
  outbox: readonly Item[] = []
  term = 0
  #n = 0
  #rev = 0
  #settled: string[] = []
  readonly #store: Store

  constructor(store: Store) {
    this.#store = store
  }

  /** Reads device and outbox, and what the caller adds, as of one moment. */
  async read(more: readonly Read[]): Promise<Entry[][]> {
    const [meta = [], outbox = [], ...rest] = await this.#store.read([
      { space: 'meta', keys: ['device', 'n', 'rev', 'term'] },
      { space: 'outbox' },
      ...more,
    ])
    const value = (key: string) => meta.find((entry) => entry.key === key)?.value
    this.device = { ...EMPTY_DEVICE, ...(value('device') as Device | undefined) }
    this.#n = (value('n') as number | undefined) ?? 0
    this.#rev = (value('rev') as number | undefined) ?? 0
    this.term = (value('term') as number | undefined) ?? 0
    this.outbox = reuse(
      outbox.map((entry) => entry.value as Item),
      this.outbox,
    )
    return rest
  }

  /** Begins a new term; false if another client did. */
  async claim(): Promise<boolean> {
    const term = this.term + 1
    const isMine = await this.#store.transaction(
      [{ op: 'put', space: 'meta', key: 'term', value: term }],
      [{ key: 'term', equals: this.term }],
      'relaxed',
    )
    if (isMine) this.term = term
    return isMine
  }

  /** Stores a step; false, without effect, if another client has changed what it is based on. */
  async store(step: Step, leads: boolean): Promise<boolean> {
    const { state, rows, results, clears } = step
    const ops: Op[] = []
    if (clears) ops.push({ op: 'clear', space: 'rows' }, { op: 'clear', space: 'results' })
    for (const [table, id, row] of rows) {
      const key = [table, id] as const
      ops.push(row ? { op: 'put', space: 'rows', key, value: row } : { op: 'delete', space: 'rows', key })
    }
    for (const [key, result] of results) {
      ops.push(result ? { op: 'put', space: 'results', key, value: result } : { op: 'delete', space: 'results', key })
    }
    const surplus = this.#settle(results)
    for (const key of surplus) ops.push({ op: 'delete', space: 'results', key })
    const hasDevice = state.device !== this.device
    const hasOutbox = state.outbox !== this.outbox
    if (!hasDevice && !hasOutbox && ops.length === 0) return true
    const checks: Check[] = []
    if (leads) checks.push({ key: 'term', equals: this.term })
    if (hasDevice) ops.push({ op: 'put', space: 'meta', key: 'device', value: state.device })
    if (hasDevice || rows.length > 0) {
      checks.push({ key: 'n', equals: this.#n })
      ops.push({ op: 'put', space: 'meta', key: 'n', value: this.#n + 1 })
    }
    if (hasOutbox) {
      ops.push(...outboxOps(this.outbox, state.outbox))
      checks.push({ key: 'rev', equals: this.#rev })
      ops.push({ op: 'put', space: 'meta', key: 'rev', value: this.#rev + 1 })
    }
    const isIdentity = state.device.token !== this.device.token || state.device.enrollment !== this.device.enrollment
    const isStored = await this.#store.transaction(ops, checks, hasOutbox || isIdentity ? 'strict' : 'relaxed')
    if (!isStored) return false
    if (hasDevice || rows.length > 0) this.#n += 1
    if (hasOutbox) this.#rev += 1
    this.device = state.device
    this.outbox = state.outbox
    this.#settled = this.#settled.slice(surplus.length)
    for (const [key, result] of results) if (result?.isOpen === false) this.#settled.push(key)
    return true
  }

  /**
   * Deletes rows, cursor and token; with `keepsOutbox` the waiting changes stay, and belong to the same user. What another
   * tab has read is out of date.
   */
  wipe(keepsOutbox: boolean): Promise<boolean> {
    const { deviceId, userId, ackedSeq, parked } = this.device
    const device = keepsOutbox ? { ...EMPTY_DEVICE, deviceId, userId, ackedSeq, parked } : EMPTY_DEVICE
    const ops: Op[] = [
      { op: 'clear', space: 'rows' },
      { op: 'clear', space: 'results' },
      ...(keepsOutbox ? [] : [{ op: 'clear', space: 'outbox' } as const]),
      { op: 'put', space: 'meta', key: 'device', value: device },
      { op: 'put', space: 'meta', key: 'n', value: this.#n + 1 },
      { op: 'put', space: 'meta', key: 'rev', value: this.#rev + 1 },
    ]
    return this.#store.transaction(
      ops,
      [
        { key: 'n', equals: this.#n },
        { key: 'rev', equals: this.#rev },
      ],
      'strict',
    )
  }

  #settle(results: Step['results']): string[] {
    const more = [...results.values()].filter((result) => result?.isOpen === false).length
    return this.#settled.slice(0, Math.max(this.#settled.length + more - RESULTS_MAX, 0))
  }

  /** The results that the storage has, and which of them may be deleted later. */
  adopt(results: readonly Entry[]): void {
    this.#settled = results.filter(({ value }) => (value as StoredResult).isOpen === false).map(({ key }) => String(key))
  }
}

/** The operations that turn one outbox into another. */
function outboxOps(before: readonly Item[], after: readonly Item[]): Op[] {
  const [removed, added] = difference(before, after)
  const seqs = new Set(added.map(({ seq }) => seq))
  const gone = removed.filter(({ seq }) => !seqs.has(seq))
  return [
    ...gone.map(({ seq }): Op => ({ op: 'delete', space: 'outbox', key: seq })),
    ...added.map((item): Op => ({ op: 'put', space: 'outbox', key: item.seq, value: item })),
  ]
}

/** Stored rows by their name. */
export function storedRows(entries: readonly Entry[]): Map<string, StoredRow> {
  return new Map(
    entries.map(({ key, value }) => {
      const [table, id] = key as RowId
      return [`${table}\0${id}`, value as StoredRow]
    }),
  )
}
