import { Signal, type Unsubscribe } from '../emitter.js'
import type { JsonObject } from '../json.js'
import type { StoreError } from '../store/store.js'
import { compileOrder, compileWhere, type OrderBy, type Where } from './where.js'
import type { View } from './view.js'

export type QueryOptions<T> = {
  readonly where?: Where<T>
  readonly orderBy?: OrderBy<T>
  readonly limit?: number
}

/**
 * `loading`: the storage has not been read. `partial`: the first snapshot is not complete, so rows may be missing.
 * `ready`: the rows as of the last sync.
 */
export type QueryPhase = 'loading' | 'partial' | 'ready'

export type QuerySnapshot<T> = {
  readonly rows: readonly T[]
  readonly phase: QueryPhase
  readonly error: StoreError | null
}

/** Rows of a table, live. The first subscriber starts it, and the last one stops it after a second. */
export type Query<T> = {
  readonly subscribe: (listener: () => void) => Unsubscribe
  /** The same reference until something has changed. */
  readonly getSnapshot: () => QuerySnapshot<T>
  /** The rows once, as soon as the storage has been read. */
  readonly get: () => Promise<readonly T[]>
}

export type QueryHost = {
  readonly view: View
  /** Reads the table from the storage into the view. */
  load(table: string): Promise<StoreError | null>
  hasSynced(): boolean
  /** Calls the listener when `hasSynced` may have changed. */
  onStatus(listener: () => void): Unsubscribe
  schedule(run: () => void, ms: number): () => void
  report(error: unknown): void
}

/** How long a query without subscribers keeps its rows, for a component that mounts again. */
const LINGER_MS = 1000

/** Above this number of changes, one pass over the list costs less than moving row by row. */
const MANY = 50

const EMPTY: QuerySnapshot<never> = { rows: [], phase: 'loading', error: null }

export function createQuery<T>(host: QueryHost, table: string, { where, orderBy, limit }: QueryOptions<T>): Query<T> {
  const matches = compileWhere(where)
  const compare = compileOrder(orderBy)
  const signal = new Signal((error) => host.report(error))
  let snapshot: QuerySnapshot<T> = EMPTY
  /** All that match, by id and in their order: a change moves its rows only. */
  const found = new Map<string, JsonObject>()
  let sorted: JsonObject[] = []
  let stop: (() => void) | null = null
  let cancelStop = () => {}
  let isRunning = 0

  const publish = (error: StoreError | null): void => {
    const phase = host.view.rows(table) === null ? 'loading' : host.hasSynced() ? 'ready' : 'partial'
    const shown = limit === undefined ? sorted : sorted.slice(0, limit)
    const isSame = isSameList(shown, snapshot.rows)
    if (isSame && phase === snapshot.phase && error === snapshot.error) return
    // A copy: the list goes on to change.
    const rows = isSame ? snapshot.rows : (shown.slice() as unknown as readonly T[])
    snapshot = { rows, phase, error }
    signal.notify()
  }

  const recompute = (ids: ReadonlySet<string> | null): void => {
    const rows = host.view.rows(table)
    if (!rows) return
    const changed = ids ?? new Set([...rows.keys(), ...found.keys()])
    const isMany = changed.size > MANY
    const added: JsonObject[] = []
    let hasGone = false
    for (const id of changed) {
      const [before, row] = [found.get(id), rows.get(id)]
      if (before) hasGone = true
      if (before && !isMany) sorted.splice(placeOf(sorted, before, compare), 1)
      if (row && matches(row)) {
        found.set(id, row)
        if (isMany) added.push(row)
        else sorted.splice(placeOf(sorted, row, compare), 0, row)
      } else found.delete(id)
    }
    if (isMany) {
      // A snapshot adds rows to a list that may be long: only the places of the new ones are searched.
      const rest = hasGone ? sorted.filter((row) => !changed.has(String(row['id']))) : sorted
      sorted = merge(rest, added.sort(compare), compare)
    }
    publish(null)
  }

  const start = (): void => {
    cancelStop()
    if (stop) return
    const unfollow = host.view.follow(table, recompute)
    const unsubscribe = host.onStatus(() => publish(snapshot.error))
    stop = () => {
      unfollow()
      unsubscribe()
      stop = null
      sorted = []
      found.clear()
      snapshot = EMPTY
    }
    if (host.view.rows(table)) recompute(null)
    else void host.load(table).then((error) => error && publish(error))
  }

  const subscribe = (listener: () => void): Unsubscribe => {
    isRunning += 1
    // Before the query starts, so that its first rows are not missed.
    const unsubscribe = signal.subscribe(listener)
    start()
    let isOver = false
    return () => {
      if (isOver) return
      isOver = true
      unsubscribe()
      isRunning -= 1
      if (isRunning === 0) cancelStop = host.schedule(() => isRunning === 0 && stop?.(), LINGER_MS)
    }
  }

  const get = (): Promise<readonly T[]> =>
    new Promise((resolve, reject) => {
      const check = () => {
        if (snapshot.phase === 'loading' && !snapshot.error) return
        unsubscribe()
        if (snapshot.error) reject(snapshot.error)
        else resolve(snapshot.rows)
      }
      const unsubscribe = subscribe(check)
      queueMicrotask(check)
    })

  return { subscribe, getSnapshot: () => snapshot, get }
}

function isSameList(one: readonly unknown[], other: readonly unknown[]): boolean {
  return one.length === other.length && one.every((row, place) => row === other[place])
}

function merge(
  one: JsonObject[],
  other: JsonObject[],
  compare: (a: JsonObject, b: JsonObject) => number,
): JsonObject[] {
  const merged: JsonObject[] = []
  let from = 0
  for (const row of other) {
    const place = placeOf(one, row, compare, from)
    while (from < place) merged.push(one[from++] as JsonObject)
    merged.push(row)
  }
  while (from < one.length) merged.push(one[from++] as JsonObject)
  return merged
}

/** The place of a row among sorted ones, not before `from`. */
function placeOf(
  sorted: readonly JsonObject[],
  row: JsonObject,
  compare: (a: JsonObject, b: JsonObject) => number,
  from = 0,
): number {
  let to = sorted.length
  while (from < to) {
    const middle = (from + to) >> 1
    if (compare(sorted[middle] as JsonObject, row) < 0) from = middle + 1
    else to = middle
  }
  return from
}
