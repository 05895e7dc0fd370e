import type { JsonObject } from '../json.js'
import type { Item } from '../outbox/item.js'
import { change } from '../outbox/overlay.js'
import { CONFLICTS } from './batch.js'
import { Draft } from './draft.js'
import type { ItemResult, RowId } from './event.js'
import { bury, isOlder, MESSAGES, numberOf, put, viaOf } from './rows.js'
import type { State, StoredResult } from './state.js'

/** The rows that results may change or name: the event needs them as stored. */
export function rowsInFlight(state: State, results: readonly ItemResult[]): RowId[] {
  return [
    ...inFlight(state).map(({ table, id }): RowId => [table, id]),
    ...results.flatMap(({ conflictId }): RowId[] => (conflictId === null ? [] : [[CONFLICTS, conflictId]])),
  ]
}

export function inFlight({ outbox, sentUpTo }: State): Item[] {
  return outbox.filter(({ seq }) => seq <= sentUpTo)
}

/** Stores results in the order of their items, and returns how many items must be sent again. */
export function storeResults(draft: Draft, results: readonly ItemResult[]): number {
  const items = inFlight(draft.state)
  const versions = new Map<number, number | null>()
  let acked = draft.state.device.ackedSeq
  for (const [place, item] of items.entries()) {
    const result = results[place]
    // A result of another item is no result.
    if (!result || (result.seq !== null && result.seq !== item.seq)) break
    let isInEffect = true
    const { status } = result
    const isApplied = status === 'applied'
    if (isApplied || status === 'conflict') {
      isInEffect = isApplied || result.winner === 'mine'
      if (!result.overtaken && item.sent !== 'overtaken') storeRow(draft, item, result)
    } else if (status === 'rejected') {
      isInEffect = false
    } else if (status !== 'duplicate') {
      // `retry`, and statuses of newer servers: this item and those behind it keep their numbers.
      break
    }
    keepResult(draft, item, result, isInEffect)
    versions.set(item.seq, isInEffect ? result.version : null)
    acked = item.seq
  }
  if (versions.size > 0) {
    draft.items((item) => {
      if (versions.has(item.seq)) return null
      const version = item.baseSeq === null ? undefined : versions.get(item.baseSeq)
      return version === undefined ? item : { ...item, baseVersion: version }
    })
    draft.device({ ackedSeq: acked })
    const { device, outbox } = draft.state
    if (device.closed.length > 0 && outbox.every(({ sent }) => sent === 'no')) draft.device({ closed: [] })
  }
  return items.length - versions.size
}

/** Keeps a change that will never succeed, for the user. */
export function refuse(draft: Draft, item: Item, code: string, message: string): void {
  const result: ItemResult = {
    seq: item.seq,
    status: 'rejected',
    code,
    message,
    version: null,
    revision: null,
    winner: null,
    conflictId: null,
    server: null,
    overtaken: false,
  }
  keepResult(draft, item, result, false)
}

function keepResult(draft: Draft, item: Item, result: ItemResult, isInEffect: boolean): void {
  const { code, message, version, winner, conflictId, server } = result
  const status = result.status as StoredResult['status']
  const stored: StoredResult = {
    item,
    status,
    code,
    message,
    version,
    winner,
    conflictId,
    server,
    isOpen: !isInEffect && (conflictId === null || isConflictOpen(draft, item, conflictId)),
    generation: draft.state.device.generation,
  }
  draft.results.set(item.key, stored)
  // What the user has to decide is read from the storage: it must outlive this process.
  if (status === 'conflict' && isInEffect) draft.notify({ name: 'conflict', result: stored })
}

/**
 * Whether the server lists a lost conflict. The answer may be late: the user may have decided it elsewhere since. Of an item
 * that was sent before a snapshot, the answer may even be older than that, which no longer has a decided one; one that is open
 * is in the snapshot, or comes in the stream.
 */
function isConflictOpen(draft: Draft, { sent }: Item, id: string): boolean | null {
  if (draft.state.device.closed.includes(id)) return false
  return sent === 'yes' || draft.stored(CONFLICTS, id) !== null || null
}

/**
 * Stores the row after the change, with what its result adds; or as the server has it, after a conflict or an edit that
 * was merged with changes of others. If the item was sent before, batches may have brought the change since, and others
 * after it: a row that is not older stays, and one that they removed is not changed. Of an item that was sent before a
 * snapshot, the result may be older than that: only the snapshot decides whether the row is still there. What the numbers
 * of a removed row are does not count either: its id may be used again.
 */
function storeRow(draft: Draft, item: Item, result: ItemResult): void {
  const { table, id } = item
  const { server, status, version, revision } = result
  const via = viaOf(draft, table, id)
  if (server) return put(draft, table, id, server, numberOf(table, server), via)
  const before = draft.stored(table, id)
  if (!before && item.op !== 'create') return
  if (status === 'conflict') {
    // The deletion of a row of an own table comes in a batch.
    if (before && table === MESSAGES) bury(draft, table, id, result)
    return
  }
  const own = numberOf(table, result)
  if (before && !isOlder(table, before, result)) {
    // A snapshot has brought it, and the stream repeats what led to it.
    if (own !== null) draft.put(table, id, { ...before, own: Math.max(own, before.own ?? own) })
    return
  }
  const { device } = draft.state
  const after = change(before?.row ?? null, item, device.userId)
  if (!after) return bury(draft, table, id, result)
  const row: JsonObject = { ...after, ...(version !== null && { version }), ...(revision !== null && { revision }) }
  const isUncertain = item.sent === 'earlier' && device.inSnapshot
  draft.put(table, id, {
    row,
    generation: isUncertain ? (before?.generation ?? device.generation - 1) : device.generation,
    ...(own !== null && { own }),
    ...(via && { via }),
  })
}
