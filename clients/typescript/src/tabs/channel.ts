import { count, isObject, text, type JsonObject } from '../json.js'
import type { RowId } from '../machine/event.js'

/** A message between the tabs of one storage. It names what has changed; the receiver reads the storage. */
export type Message =
  /** Of the leader, each second and whenever its status changes. */
  | {
      readonly type: 'beat'
      readonly term: number
      readonly status: unknown
      readonly presence?: readonly (readonly [string, string])[]
    }
  /** Is there a leader? */
  | { readonly type: 'ping' }
  /** Rows: null for any. */
  | { readonly type: 'changed'; readonly rows: readonly RowId[] | null }
  | { readonly type: 'sync'; readonly by: 'user' | 'hint' }
  | { readonly type: 'notice'; readonly name: string; readonly key: string | null; readonly data: JsonObject }

/** The name has a version: a tab of another build does not receive what it would not understand. */
const CHANNEL = 'posduif:1:'

export type Channel = {
  post(message: Message): void
  close(): void
}

/** There are no other tabs. */
export const NO_CHANNEL: Channel = { post: () => {}, close: () => {} }

/** A channel to the other tabs; without BroadcastChannel, or of a storage that no other tab has, there are none. */
export function openChannel(name: string | null, receive: (message: Message) => void): Channel {
  if (name === null || typeof BroadcastChannel === 'undefined') return NO_CHANNEL
  const channel = new BroadcastChannel(CHANNEL + name)
  let isClosed = false
  channel.onmessage = ({ data }: MessageEvent<unknown>) => {
    const message = readMessage(data)
    if (message) receive(message)
  }
  return {
    post: (message) => {
      if (!isClosed) channel.postMessage(message)
    },
    close: () => {
      isClosed = true
      channel.close()
    },
  }
}

/** Any script of the origin may write to the channel. */
export function readMessage(data: unknown): Message | null {
  if (!isObject(data)) return null
  switch (data['type']) {
    case 'beat': {
      const term = count(data['term'])
      if (term === null || !isObject(data['status'])) return null
      const { presence } = data
      const isPresence = Array.isArray(presence) && presence.every(isPair)
      return {
        type: 'beat',
        term,
        status: data['status'],
        ...(isPresence && { presence: presence as [string, string][] }),
      }
    }
    case 'ping':
      return { type: 'ping' }
    case 'changed': {
      const { rows } = data
      if (rows === null) return { type: 'changed', rows: null }
      return Array.isArray(rows) && rows.every(isPair) ? { type: 'changed', rows: rows as unknown as RowId[] } : null
    }
    case 'sync':
      return { type: 'sync', by: data['by'] === 'user' ? 'user' : 'hint' }
    case 'notice': {
      const name = text(data['name'])
      return name === null || !isObject(data['data'])
        ? null
        : { type: 'notice', name, key: text(data['key']), data: data['data'] as JsonObject }
    }
    default:
      return null
  }
}

function isPair(value: unknown): boolean {
  return Array.isArray(value) && value.length === 2 && value.every((part) => typeof part === 'string')
}
