import type { Write } from '../outbox/item.js'
import type { JsonObject } from '../json.js'
import type { Device, Enrollment, Failure, StoredResult, StoredRow } from './state.js'
import type { Item } from '../outbox/item.js'

/** A batch of `GET /api/sync/incoming`. */
export type Batch = {
  readonly messages: readonly JsonObject[]
  readonly users: readonly JsonObject[]
  readonly changes: readonly Change[]
  readonly cursor: string
  readonly hasMore: boolean
  readonly reset: boolean
  /** The group whose rows the batch has, after a join. */
  readonly scope?: string
}

export type Change = {
  readonly table: string
  readonly op: string
  readonly id: string | null
  readonly row: JsonObject | null
  /** Who sees the row, of tables that groups see. */
  readonly via?: readonly string[]
  /** Of `join` and `leave`: the kind of the group, whose id is `id`. */
  readonly group?: string
}

/** A result of `POST /api/sync/outgoing`. */
export type ItemResult = {
  readonly seq: number | null
  readonly status: string
  readonly code: string | null
  readonly message: string | null
  readonly version: number | null
  readonly revision: number | null
  readonly winner: 'mine' | 'theirs' | null
  readonly conflictId: string | null
  readonly server: JsonObject | null
  /** Of an item that comes again: its row is not any more as the item left it. */
  readonly overtaken: boolean
}

/** Stored rows by their name, as of the transaction in which the event is handled. */
export type Stored = ReadonlyMap<string, StoredRow>

/** What happened. Everything that the machine does not have in its state is a field of the event. */
export type Event =
  /** The storage was read: at the start, after a crash, or because another tab changed it. */
  | { readonly type: 'loaded'; readonly device: Device; readonly outbox: readonly Item[] }
  /** This client becomes the leader, or stops being it. */
  | { readonly type: 'leads'; readonly leads: boolean; readonly live: boolean; readonly hasCredentials: boolean }
  /** `user`: repeats at once. `hint`: the network may be back. `timer`: the interval is over. */
  | { readonly type: 'sync'; readonly by: 'user' | 'hint' | 'timer' }
  | { readonly type: 'write'; readonly writes: readonly Write[]; readonly stored: Stored }
  /** The user has seen a refused change, or withdraws one that was never sent. */
  | { readonly type: 'discard'; readonly key: string; readonly result: StoredResult | null }
  | { readonly type: 'enroll'; readonly enrollment: Enrollment; readonly freshId: string }
  | {
      readonly type: 'enrolled'
      readonly ticket: number
      readonly userId: string
      readonly deviceId: string
      readonly token: string
    }
  | { readonly type: 'credentials'; readonly ticket: number; readonly token: string | null; readonly freshId: string }
  | {
      readonly type: 'batch'
      readonly ticket: number
      readonly requested: string | null
      readonly at: number
      readonly batch: Batch
      readonly stored: Stored
      /** At the end of a snapshot: all stored rows that are older than it. */
      readonly old: readonly RowId[]
      /** Those that a `join` or `leave` of the batch may concern; `stored` has them. */
      readonly regrouped: readonly RowId[]
      /**
       * Lost conflicts that are open here, or may be, by their ids. At the end of a snapshot `stored` has their rows in
       * the list of the server.
       */
      readonly conflicts: ReadonlyMap<string, StoredResult>
    }
  | {
      readonly type: 'results'
      readonly ticket: number
      readonly results: readonly ItemResult[]
      readonly stored: Stored
    }
  | { readonly type: 'acknowledged'; readonly ticket: number }
  | { readonly type: 'resolved'; readonly ticket: number }
  | { readonly type: 'failed'; readonly ticket: number; readonly failure: Failure; readonly freshId: string }
  /** A delay is over. */
  | { readonly type: 'retry'; readonly lane: 'up' | 'down' | 'auth' | 'live' }
  | { readonly type: 'liveOpened' }
  /** The stream has lived for some seconds. */
  | { readonly type: 'liveSteady' }
  | { readonly type: 'liveEvent'; readonly name: string; readonly id: string | null; readonly data: JsonObject }
  | { readonly type: 'liveFailed'; readonly failure: Failure }
  /** The page was hidden for long, or is shown again. */
  | { readonly type: 'liveWanted'; readonly wanted: boolean }

export type RowId = readonly [table: string, id: string]
