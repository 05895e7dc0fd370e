import { count, text, type JsonObject } from '../json.js'
import type { Item } from '../outbox/item.js'
import type { ItemResult } from './event.js'
import type { Draft } from './draft.js'
import type { StoredRow } from './state.js'

/** Who sees a row; undefined in tables that no group sees. */
export type Via = readonly string[] | undefined

/** The table whose rows have revisions. */
export const MESSAGES = 'messages'

/** What grows with each change of a row: the revision of messages, the version of rows of other tables. */
export function numberOf(table: string, of: { readonly revision?: unknown; readonly version?: unknown }): number | null {
  return count(table === MESSAGES ? of.revision : of.version)
}

/**
 * Stores a row of a batch or of a conflict, unless the stored one is newer: a message with a higher revision, or a row
 * that an own upload stored under a higher number. Rows from before the current snapshot do not compare.
 */
export function put(
  draft: Draft,
  table: string,
  id: string,
  row: JsonObject,
  own: number | null,
  via: Via,
  isPage = false,
): void {
  const before = draft.entry(table, id)
  const { generation } = draft.state.device
  const number = numberOf(table, row)
  if (before && before.generation === generation) {
    const had = numberOf(table, before.row)
    if (table === MESSAGES && had !== null && number !== null && number < had) return
    const isBehind = before.own !== undefined && number !== null && number < before.own
    const isAway = before.isDeleted && (before.own === undefined || number === null)
    if (own === null && (isBehind || isAway)) {
      // Who sees it is what batches say, also behind the result.
      if (via) draft.put(table, id, { ...before, via })
      return
    }
  }
  // Behind a page the stream repeats entries from before it: the row of the page has to come once more.
  if (own === null && isPage && before?.own !== undefined) own = number
  draft.put(table, id, { row, generation, ...(own !== null && { own }), ...(via && { via }) })
}

/** Deletes a row by an own upload. Entries of the stream from before must not bring it back. */
export function bury(draft: Draft, table: string, id: string, result: ItemResult): void {
  const { revision } = result
  const row = { id, ...(revision !== null && { revision }) }
  const { generation } = draft.state.device
  const via = viaOf(draft, table, id)
  const own = numberOf(table, result)
  draft.put(table, id, {
    row,
    generation,
    ...(own !== null && { own }),
    ...(via && { via }),
    isDeleted: true,
  })
}

/**
 * Who sees a row that a result brings: results do not name them. What an old row says is from before the snapshot, which
 * may not bring the row any more. A message of the user's own stays in any case.
 */
export function viaOf(draft: Draft, table: string, id: string): Via {
  const before = draft.entry(table, id)
  if (before?.generation === draft.state.device.generation) return before.via
  return table === MESSAGES && !before?.via ? undefined : []
}

/** Stores a row of a batch, and marks the items whose effect it cannot be compared with. */
export function receive(draft: Draft, table: string, id: string, row: JsonObject, isPage: boolean, via?: Via): void {
  const before = draft.entry(table, id)
  const isOwn = (item: Item): boolean => item.table === table && item.id === id && item.op === 'create'
  if (numberOf(table, row) === null || (before ? isAnother(before.row, row) : !draft.state.outbox.some(isOwn))) {
    overtake(draft, table, id)
  }
  put(draft, table, id, row, null, via, isPage)
}

/** Marks the items of a row that were sent: what they changed is no longer there. */
export function overtake(draft: Draft, table: string, id: string): void {
  draft.items((item) =>
    item.sent !== 'no' && item.table === table && item.id === id ? { ...item, sent: 'overtaken' } : item,
  )
}

/** Marks all items that were sent and whose rows are not here: batches no longer mention those rows. */
export function overtakeMissing(draft: Draft): void {
  draft.items((item) =>
    item.sent !== 'no' && !draft.stored(item.table, item.id) ? { ...item, sent: 'overtaken' } : item,
  )
}

/** Whether a row is older than the result of a change of it. */
export function isOlder(table: string, { row }: StoredRow, result: ItemResult): boolean {
  const [has, wrote] = [numberOf(table, row), numberOf(table, result)]
  return has === null || wrote === null || has < wrote
}

/** Whether the id was used again: the numbers of such a row start again. */
function isAnother(before: JsonObject, row: JsonObject): boolean {
  const created = text(before['created_at'])
  if (created === null) return false
  const other = text(row['created_at'])
  return created !== other && (other === null || Date.parse(created) !== Date.parse(other))
}
