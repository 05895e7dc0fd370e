import type { JsonObject } from '../json.js'
import type { Item } from './item.js'

/** The row after a change; null if the change deletes it or there is none. */
export function change(before: JsonObject | null, item: Item, userId: string | null): JsonObject | null {
  switch (item.op) {
    case 'create': {
      const created =
        item.table === 'messages'
          ? { id: item.id, sender_id: userId ?? '', version: 1, revision: 1, read_at: null }
          : { id: item.id }
      return { ...created, ...item.row }
    }
    case 'delete':
      return null
    case 'edit':
      return before && { ...before, ...item.row }
    case 'read':
      return before && { ...before, ...item.row, read_at: before['read_at'] ?? item.at }
  }
}

/** What the user sees of a row: the items of its row, in their order, applied to it. */
export function overlay(stored: JsonObject | null, items: Iterable<Item>, userId: string | null): JsonObject | null {
  let row = stored
  for (const item of items) row = change(row, item, userId)
  return row
}
