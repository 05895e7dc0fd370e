import { CONFLICTS, hasConflicts, endsSnapshot, regroupedBy, rowsOf } from '../machine/batch.js'
import type { Batch, ItemResult, RowId } from '../machine/event.js'
import { rowsInFlight } from '../machine/results.js'
import { rowName, type StoredResult, type StoredRow } from '../machine/state.js'
import type { Session } from '../session/session.js'
import type { Store, StoreError } from '../store/store.js'

/** Rows that are read at once when all are visited. */
const PAGE = 1000

/** Stores a batch, received at `at`, with what the machine needs to know of the stored rows. */
export function storeBatch(
  session: Session,
  ticket: number,
  requested: string | null,
  batch: Batch,
  at: number,
): Promise<StoreError | null> {
  return session.step(async (state) => {
    const stored = await session.rows(rowsOf(batch, state))
    const generation = state.device.generation + (batch.reset ? 1 : 0)
    const isLast = endsSnapshot(batch, state)
    const isRegrouped = regroupedBy(batch, state)
    const [old, regrouped]: [RowId[], RowId[]] = [[], []]
    if (isLast || isRegrouped) {
      await scan(session.store, (id, row) => {
        if (isLast && row.generation < generation) old.push(id)
        if (!isRegrouped?.(row)) return
        regrouped.push(id)
        stored.set(rowName(...id), row)
      })
    }
    const conflicts = new Map<string, StoredResult>()
    for (const result of hasConflicts(batch, state) ? await session.results() : []) {
      const { conflictId, isOpen } = result
      if (conflictId !== null && isOpen !== false) conflicts.set(conflictId, result)
    }
    if (isLast) {
      const rows = await session.rows([...conflicts.keys()].map((id) => [CONFLICTS, id]))
      for (const [name, row] of rows) stored.set(name, row)
    }
    return { type: 'batch', ticket, requested, at, batch, stored, old, regrouped, conflicts }
  })
}

export function storeResults(
  session: Session,
  ticket: number,
  results: readonly ItemResult[],
): Promise<StoreError | null> {
  return session.step(async (state) => ({
    type: 'results',
    ticket,
    results,
    stored: await session.rows(rowsInFlight(state, results)),
  }))
}

/** Passes all stored rows, a page at a time. */
async function scan(store: Store, visit: (id: RowId, row: StoredRow) => void): Promise<void> {
  for (let after: RowId | undefined; ;) {
    const [entries = []] = await store.read([{ space: 'rows', limit: PAGE, ...(after && { after }) }])
    for (const { key, value } of entries) visit(key as RowId, value as StoredRow)
    if (entries.length < PAGE) return
    after = entries.at(-1)?.key as RowId
  }
}
