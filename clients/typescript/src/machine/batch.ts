import { text, type JsonObject } from '../json.js'
import { Draft } from './draft.js'
import type { Batch, Event, RowId } from './event.js'
import { audiencesOf, forgetAudience, forgetUnseen, groupName, isSeen, storeGroups } from './groups.js'
import { overtake, overtakeMissing, receive } from './rows.js'
import { CLOSED_MAX, rowName, type State, type StoredResult, type StoredRow } from './state.js'

/** The rows that a batch may change or compare with: the event needs them as stored. */
export function rowsOf(batch: Batch, state: State): RowId[] {
  const rows: RowId[] = []
  for (const [table, list] of listsOf(batch)) {
    for (const row of list) {
      const id = text(row['id'])
      if (id !== null) rows.push([table, id])
    }
  }
  for (const { table, id, group } of batch.changes) if (id !== null && group === undefined) rows.push([table, id])
  if (endsSnapshot(batch, state) || batch.changes.some(({ op }) => op === 'leave'))
    for (const { table, id, sent } of state.outbox) if (sent === 'yes' || sent === 'earlier') rows.push([table, id])
  return rows
}

/** Whether a batch completes a snapshot: the event needs the rows that are older than it. */
export function endsSnapshot(batch: Batch, { device }: State): boolean {
  return !batch.hasMore && (batch.reset || device.inSnapshot)
}

/** Which stored rows a `join` or `leave` of a batch may concern, in addition; null: it has none. */
export function regroupedBy(batch: Batch, { device }: State): ((row: StoredRow) => boolean) | null {
  const [joined, left] = ['join', 'leave'].map((name) => batch.changes.filter(({ op }) => op === name).map(groupName))
  if (!joined || !left || joined.length + left.length === 0) return null
  const audiences = audiencesOf(device, batch.reset)
  for (const group of left) audiences.groups.delete(group)
  return ({ via }) => (left.length > 0 && !isSeen(via, audiences)) || joined.some((group) => via?.includes(group))
}

/** The table whose rows are the open conflicts of the user. */
export const CONFLICTS = 'message_conflicts'

type Conflicts = (Event & { type: 'batch' })['conflicts']

/** Whether a batch may begin or end conflicts: the event needs those that are not decided here. */
export function hasConflicts(batch: Batch, state: State): boolean {
  return endsSnapshot(batch, state) || batch.changes.some(({ table }) => table === CONFLICTS)
}

/** Stores a batch with its cursor, or discards it whole. */
export function storeBatch(draft: Draft, event: Event & { type: 'batch' }): void {
  const { batch, requested, old, regrouped, at, conflicts } = event
  const { cursor } = draft.state.device
  // Another request has moved the cursor; what this batch brings comes again.
  if (requested !== cursor) return
  const isLastOfSnapshot = endsSnapshot(batch, draft.state)
  if (batch.reset) {
    const { generation } = draft.state.device
    draft.device({ generation: generation + 1, inSnapshot: true })
    draft.set({ progress: 0 })
    draft.items((item) => (item.sent === 'yes' ? { ...item, sent: 'earlier' } : item))
    if (generation > 0) draft.notify({ name: 'reset' })
  }
  const isPage = draft.state.device.inSnapshot || batch.scope !== undefined
  for (const [table, rows] of listsOf(batch)) {
    for (const row of rows) {
      const id = text(row['id'])
      if (id !== null) receive(draft, table, id, row, isPage)
    }
  }
  const audiences = audiencesOf(draft.state.device, batch.reset)
  let hasLeft = false
  for (const change of batch.changes) {
    const { table, op, id, row, via, group } = change
    // All that leave together are one pass over the rows.
    if (hasLeft && op !== 'leave') forgetUnseen(draft, regrouped, audiences)
    hasLeft = op === 'leave'
    if (op === 'message') {
      draft.notify({ name: 'message', event: table.replace(/^posduif:/, ''), id, data: row })
    } else if (group !== undefined) {
      if (op === 'join') {
        // A snapshot is as of now already.
        if (!batch.reset) forgetAudience(draft, regrouped, audiences, groupName(change))
        audiences.groups.add(groupName(change))
      } else if (hasLeft) audiences.groups.delete(groupName(change))
    } else if (id !== null && (op === 'delete' || (row && !isSeen(via, audiences)))) {
      remove(draft, table, id, conflicts)
      overtake(draft, table, id)
    } else if (id !== null && row) {
      receive(draft, table, id, row, isPage, via)
      if (table === CONFLICTS) confirm(draft, conflicts.get(id))
    }
  }
  if (hasLeft) forgetUnseen(draft, regrouped, audiences)
  storeGroups(draft, audiences)
  const received = batch.messages.length + batch.users.length + batch.changes.length
  draft.device({ cursor: batch.cursor })
  draft.set({ isUnacknowledged: received > 0 || draft.state.isUnacknowledged })
  if (isLastOfSnapshot) endSnapshot(draft, old, conflicts)
  draft.set({ progress: isPage && batch.hasMore ? draft.state.progress + received : 0 })
  if (batch.hasMore) {
    if (batch.cursor === cursor) {
      const message = 'the server has more rows, but the cursor does not advance'
      draft.lane('down', { error: { kind: 'lost', message } })
    }
    draft.lane('down', { wanted: true })
  } else {
    const { seen, covered } = draft.state.live
    draft.device({ lastSyncedAt: at })
    if (covered !== null) draft.device({ lastEventId: covered })
    // Events that came after the request was sent need another one.
    draft.lane('down', { wanted: seen !== covered })
  }
}

/** Deletes a row. A conflict whose row goes was decided on another device or page of the user, or with its row. */
function remove(draft: Draft, table: string, id: string, conflicts: Conflicts): void {
  draft.put(table, id, null)
  if (table !== CONFLICTS) return
  const result = conflicts.get(id)
  if (result) draft.results.set(result.item.key, null)
  else if (draft.state.outbox.some(({ sent }) => sent !== 'no')) {
    draft.device({ closed: [...draft.state.device.closed, id].slice(-CLOSED_MAX) })
  }
}

/** The server lists this conflict: the user has to decide it. */
function confirm(draft: Draft, result: StoredResult | undefined): void {
  if (result?.isOpen === null) draft.results.set(result.item.key, { ...result, isOpen: true })
}

function endSnapshot(draft: Draft, old: readonly RowId[], conflicts: Conflicts): void {
  for (const [table, id] of old) {
    // The batch itself may have brought it.
    if (!draft.rows.has(rowName(table, id))) remove(draft, table, id, conflicts)
  }
  const { generation } = draft.state.device
  for (const [id, result] of conflicts) {
    // The stream no longer brings its end, or has never brought its begin.
    if (result.generation < generation && !draft.stored(CONFLICTS, id)) draft.results.set(result.item.key, null)
  }
  overtakeMissing(draft)
  draft.device({ inSnapshot: false, hasSynced: true })
}

function listsOf(batch: Batch): readonly (readonly [string, readonly JsonObject[]])[] {
  return [
    ['messages', batch.messages],
    ['users', batch.users],
  ]
}
