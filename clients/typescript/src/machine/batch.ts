import { text, type JsonObject } from '../json.js'
import { Draft } from './draft.js'
import type { Batch, Event, RowId } from './event.js'
import { overtake, receive } from './rows.js'
import { rowName, type State } from './state.js'

/** The rows that a batch may change or compare with: the event needs them as stored. */
export function rowsOf(batch: Batch, state: State): RowId[] {
  const rows: RowId[] = []
  for (const [table, list] of listsOf(batch)) {
    for (const row of list) {
      const id = text(row['id'])
      if (id !== null) rows.push([table, id])
    }
  }
  for (const { table, id } of batch.changes) if (id !== null) rows.push([table, id])
  if (endsSnapshot(batch, state))
    for (const { table, id, sent } of state.outbox) if (sent === 'yes') rows.push([table, id])
  return rows
}

/** Whether a batch completes a snapshot: the event needs the rows that are older than it. */
export function endsSnapshot(batch: Batch, { device }: State): boolean {
  return !batch.hasMore && (batch.reset || device.inSnapshot)
}

/** Stores a batch with its cursor, or discards it whole. */
export function storeBatch(draft: Draft, event: Event & { type: 'batch' }): void {
  const { batch, requested, old, at } = event
  const { cursor } = draft.state.device
  // Another request has moved the cursor; what this batch brings comes again.
  if (requested !== cursor) return
  const isLastOfSnapshot = endsSnapshot(batch, draft.state)
  if (batch.reset) {
    const { generation } = draft.state.device
    draft.device({ generation: generation + 1, inSnapshot: true })
    draft.set({ progress: 0 })
    if (generation > 0) draft.notify({ name: 'reset' })
  }
  for (const [table, rows] of listsOf(batch)) {
    for (const row of rows) {
      const id = text(row['id'])
      if (id !== null) receive(draft, table, id, row)
    }
  }
  for (const { table, op, id, row } of batch.changes) {
    if (op === 'message') {
      draft.notify({ name: 'message', event: table.replace(/^posduif:/, ''), id, data: row })
    } else if (id !== null && op === 'delete') {
      draft.put(table, id, null)
      overtake(draft, table, id)
    } else if (id !== null && row) {
      receive(draft, table, id, row)
    }
  }
  const received = batch.messages.length + batch.users.length + batch.changes.length
  draft.device({ cursor: batch.cursor })
  draft.set({ isUnacknowledged: received > 0 || draft.state.isUnacknowledged })
  if (draft.state.device.inSnapshot) draft.set({ progress: draft.state.progress + received })
  if (isLastOfSnapshot) endSnapshot(draft, old)
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

function endSnapshot(draft: Draft, old: readonly RowId[]): void {
  for (const [table, id] of old) {
    // The batch itself may have brought it.
    if (!draft.rows.has(rowName(table, id))) draft.put(table, id, null)
  }
  // A snapshot does not mention deleted rows.
  draft.items((item) =>
    item.sent === 'yes' && !draft.stored(item.table, item.id) ? { ...item, sent: 'overtaken' } : item,
  )
  draft.device({ inSnapshot: false, hasSynced: true })
  draft.set({ progress: 0 })
}

function listsOf(batch: Batch): readonly (readonly [string, readonly JsonObject[]])[] {
  return [
    ['messages', batch.messages],
    ['users', batch.users],
  ]
}
