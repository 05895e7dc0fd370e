import { count, type Json, type JsonObject } from '../json.js'
import type { Item, Write } from '../outbox/item.js'
import { overlay } from '../outbox/overlay.js'
import type { Draft } from './draft.js'
import { rowName } from './state.js'

/** Adds changes of the user to the outbox, each with the next number and what the user saw as its base. */
export function append(draft: Draft, writes: readonly Write[]): void {
  const { device } = draft.state
  const outbox = [...draft.state.outbox]
  const byRow = new Map<string, Item[]>()
  const ownItems = (table: string, id: string): Item[] => {
    const name = rowName(table, id)
    const known = byRow.get(name) ?? outbox.filter((item) => item.table === table && item.id === id)
    byRow.set(name, known)
    return known
  }
  for (const write of writes) {
    const { key, table, op, id, at } = write
    const own = op === 'create' ? [] : ownItems(table, id)
    const stored = draft.stored(table, id)?.row ?? null
    const seen = op === 'create' ? null : overlay(stored, own, device.userId)
    if (op !== 'create' && !seen) {
      const message = `there is no row ${id} of ${table} on this device: it was deleted, or has not been received`
      draft.notify({ name: 'writeRefused', key, code: 'LOCAL_NOT_FOUND', message })
      continue
    }
    // A new row has no base, and reading contests nothing.
    const isBased = op === 'edit' || op === 'delete'
    const base = isBased ? own.findLast((item) => item.op !== 'read') : undefined
    const item: Item = {
      key,
      table,
      op,
      id,
      at,
      seq: (outbox.at(-1)?.seq ?? device.ackedSeq) + 1,
      row: write.row,
      baseSeq: base?.seq ?? null,
      baseVersion: isBased && !base ? count(stored?.['version']) : null,
      ...(write.merges && op === 'edit' && seen && { baseRow: pick(seen, Object.keys(write.row)) }),
      sent: 'no',
    }
    outbox.push(item)
    byRow.get(rowName(table, id))?.push(item)
  }
  if (outbox.length === draft.state.outbox.length) return
  draft.set({ outbox })
  draft.lane('up', { wanted: true })
}

function pick(row: JsonObject, columns: readonly string[]): JsonObject {
  const picked: Record<string, Json> = {}
  for (const column of columns) picked[column] = row[column] ?? null
  return picked
}
