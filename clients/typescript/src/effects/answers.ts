import { count, isObject, text, type JsonObject } from '../json.js'
import type { Batch, Change, ItemResult } from '../machine/event.js'

/** The response to `GET /api/sync/incoming`; null if it has another form. */
export function readBatch(body: unknown): Batch | null {
  if (!isObject(body)) return null
  const { messages, users, changes, cursor, has_more: hasMore, reset } = body
  const scope = text(body['scope'])
  if (!isRows(messages) || !isRows(users) || !Array.isArray(changes) || typeof cursor !== 'string') return null
  if (typeof hasMore !== 'boolean' || typeof reset !== 'boolean') return null
  const read: Change[] = []
  for (const change of changes as unknown[]) {
    if (!isObject(change)) return null
    const { table, op, id, row, via } = change
    const group = text(change['group'])
    // A membership has no table.
    if ((typeof table !== 'string' && group === null) || typeof op !== 'string') return null
    if (via !== undefined && !isTexts(via)) return null
    read.push({
      table: text(table) ?? '',
      op,
      id: typeof id === 'number' ? String(id) : text(id),
      row: isObject(row) ? (row as JsonObject) : null,
      ...(via && { via }),
      ...(group !== null && { group }),
    })
  }
  return { messages, users, changes: read, cursor, hasMore, reset, ...(scope !== null && { scope }) }
}

/** The response to `POST /api/sync/outgoing`; null if it has another form. */
export function readResults(body: unknown): ItemResult[] | null {
  const results = isObject(body) ? body['results'] : null
  if (!isRows(results)) return null
  return results.map((result) => {
    const { winner, server } = result
    return {
      seq: count(result['seq']),
      status: text(result['status']) ?? '',
      code: text(result['code']),
      message: text(result['message']),
      version: count(result['version']),
      revision: count(result['revision']),
      winner: winner === 'mine' || winner === 'theirs' ? winner : null,
      conflictId: text(result['conflict_id']),
      server: isObject(server) ? (server as JsonObject) : null,
      overtaken: result['overtaken'] === true,
    }
  })
}

export type Enrolled = { readonly userId: string; readonly deviceId: string; readonly token: string }

/** The response to `complete` and to `POST /api/devices`; null if it has another form. */
export function readEnrolled(body: unknown): Enrolled | null {
  if (!isObject(body)) return null
  const [userId, deviceId, token] = [text(body['user_id']), text(body['device_id']), text(body['device_token'])]
  return userId !== null && deviceId !== null && token !== null ? { userId, deviceId, token } : null
}

function isTexts(value: unknown): value is string[] {
  return Array.isArray(value) && value.every((part) => typeof part === 'string')
}

function isRows(value: unknown): value is JsonObject[] {
  return Array.isArray(value) && value.every(isObject)
}
