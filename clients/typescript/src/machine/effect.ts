import type { Item } from '../outbox/item.js'
import type { JsonObject } from '../json.js'
import type { RowId } from './event.js'
import type { Enrollment, State, StoredResult, StoredRow } from './state.js'

/** What the client does next. Effects run in order, after the transaction of their step. */
export type Effect =
  | { readonly type: 'fetch'; readonly ticket: number; readonly cursor: string | null }
  | {
      readonly type: 'upload'
      readonly ticket: number
      readonly items: readonly Item[]
      readonly ackedSeq: number
      readonly pending: number
    }
  | { readonly type: 'acknowledge'; readonly ticket: number; readonly cursor: string }
  /** Closes a conflict in the server's list, and leaves the row as it is. */
  | { readonly type: 'resolve'; readonly ticket: number; readonly conflict: string }
  | { readonly type: 'enroll'; readonly ticket: number; readonly enrollment: Enrollment; readonly deviceId: string }
  | { readonly type: 'credentials'; readonly ticket: number; readonly reason: 'start' | 'refused' }
  /** `exact`: the server named the delay in ms; otherwise it grows with the failures, and is at least `least`. */
  | {
      readonly type: 'wait'
      readonly lane: 'up' | 'down' | 'auth' | 'live'
      readonly failures: number
      readonly least: number | null
    }
  /** Abandons the request in flight. */
  | { readonly type: 'abort' }
  | { readonly type: 'openLive'; readonly lastEventId: string | null }
  | { readonly type: 'closeLive' }
  | { readonly type: 'notify'; readonly notice: Notice }

/** What the app may want to know. */
export type Notice =
  /** The change has won. */
  | { readonly name: 'conflict'; readonly result: StoredResult }
  | { readonly name: 'reset' }
  | { readonly name: 'joined' | 'left'; readonly group: string; readonly id: string }
  | { readonly name: 'signedOut'; readonly code: string; readonly message: string }
  | { readonly name: 'message'; readonly event: string; readonly id: string | null; readonly data: JsonObject | null }
  | { readonly name: 'deviceAdded'; readonly data: JsonObject }
  | { readonly name: 'presence'; readonly data: JsonObject }
  | { readonly name: 'writeRefused'; readonly key: string; readonly code: string; readonly message: string }

/** A row to store; null deletes it. */
export type RowChange = readonly [...RowId, StoredRow | null]

/** One transition: the next state, what one transaction stores with it, and what follows. */
export type Step = {
  readonly state: State
  readonly rows: readonly RowChange[]
  readonly results: ReadonlyMap<string, StoredResult | null>
  /** All rows and results go first: another user enrolled. */
  readonly clears: boolean
  readonly effects: readonly Effect[]
}
