import type { Clock } from './clock.js'
import type { CredentialsCallback } from './effects/credentials.js'
import type { LiveMode } from './effects/live.js'
import type { Unsubscribe } from './emitter.js'
import type { JsonObject } from './json.js'
import type { ItemOp } from './outbox/item.js'
import type { Write } from './outbox/writes.js'
import type { Presence } from './presence.js'
import type { Status } from './status.js'
import type { Store } from './store/store.js'
import type { Sync } from './sync/index.js'
import type { ConflictRow, MessageTable, ReadableTable, Table, TableDefinition, User } from './tables/table.js'

// The type of a row is in its definition only; `any` lets definitions of all rows be listed.
// eslint-disable-next-line @typescript-eslint/no-explicit-any
export type Tables = { readonly [name: string]: TableDefinition<any> }

export type ClientOptions<T extends Tables> = {
  /** Of the server, without a path. */
  readonly url: string
  readonly store: Store
  readonly tables?: T
  readonly credentials?: CredentialsCallback
  /** How the client is notified of changes; default `auto`. `off`: it syncs only when it is asked to. */
  readonly live?: LiveMode
  /** Whether the app shows who is present; each change costs battery. */
  readonly presence?: boolean
  /** How the user sees this device in the list of devices. */
  readonly device?: { readonly name: string; readonly type: 'browser' | 'desktop' | 'mobile' }
  /** Loads the part that syncs; default: a dynamic import. See `@posduif/client/sync`. */
  readonly sync?: () => Promise<{ readonly Sync: typeof Sync }>
  /** Receives exceptions of listeners; default `console.error`. */
  readonly onError?: (error: unknown) => void
  /** For tests and platforms without these globals. */
  readonly environment?: {
    readonly fetch?: typeof fetch
    readonly WebSocket?: typeof WebSocket
    readonly clock?: Clock
    readonly locks?: LockManager
  }
}

/** A change that waits, or that was refused and the user has not seen. */
export type OutboxEntry = {
  readonly key: string
  readonly table: string
  readonly op: ItemOp
  readonly id: string
  readonly row: JsonObject
  readonly at: string
  /** `sent`: it may have been applied, and cannot be withdrawn. */
  readonly state: 'waiting' | 'sent' | 'rejected' | 'conflict'
  readonly code: string | null
  readonly message: string | null
  readonly server: JsonObject | null
}

export type Conflict = {
  readonly key: string
  readonly table: string
  readonly id: string
  /** The columns that the user wrote; null: they deleted the row. */
  readonly mine: JsonObject | null
  /** The server's row; null: it was deleted. */
  readonly server: JsonObject | null
  readonly winner: 'mine' | 'theirs' | null
  /** Decides a conflict that the user lost: their change again, on the current row, or the server's row. */
  readonly resolve: (choice: 'mine' | 'server') => Promise<Outcome>
}

export type ClientEvents = {
  /** A handler receives open conflicts and refusals once each, also those of before a reload. */
  conflict: Conflict
  rejected: OutboxEntry
  /** The server begins a snapshot that replaces the rows. */
  reset: Record<string, never>
  /** The user joined a group; its rows follow. */
  joined: { readonly group: string; readonly id: string }
  /** The membership ended: rows that only this group sees are gone, at a reset with the end of the snapshot. */
  left: { readonly group: string; readonly id: string }
  signedOut: { readonly code: string; readonly message: string }
  /** A newer build of the app needs the storage: ask the user to reload. */
  outdated: Record<string, never>
  /** A device was added to the account of the user. */
  deviceAdded: JsonObject
  /** A message of the outbox table in Postgres. It may come twice. */
  message: { readonly event: string; readonly id: string | null; readonly data: JsonObject | null }
}

export type Outcome =
  | { readonly ok: true }
  | { readonly ok: false; readonly code: string; readonly message: string; readonly retryAt?: number | null }

export type Login = {
  readonly username?: string
  readonly email?: string
  readonly password: string
  /** Of the account's second factor, after a login that failed with `CODE_REQUIRED`. */
  readonly code?: string
  readonly tenant?: string
}

export type ClientBase = {
  readonly messages: MessageTable
  readonly users: ReadableTable<User>
  readonly conflicts: ReadableTable<ConflictRow>
  readonly status: { readonly subscribe: (listener: () => void) => Unsubscribe; readonly getSnapshot: () => Status }
  readonly presence: { readonly subscribe: (listener: () => void) => Unsubscribe; readonly getSnapshot: () => Presence }
  readonly outbox: {
    /** Waiting changes, then those that were refused. */
    list(): Promise<OutboxEntry[]>
    /** Makes a change again that was refused or lost, based on what the user sees now; null if there is none of this key. */
    retry(key: string): Promise<Write | null>
    /** Forgets a change that was refused or lost, or withdraws one that was never sent. */
    discard(key: string): Promise<Outcome>
  }
  /** The user of the rows; null before the first enrollment. */
  readonly userId: string | null
  on<Name extends keyof ClientEvents>(name: Name, handler: (event: ClientEvents[Name]) => void): Unsubscribe
  /** Adds this device to the account of the user. */
  login(login: Login): Promise<Outcome>
  /** Enrolls this device with the address in an enrollment's QR code. */
  enroll(url: string): Promise<Outcome>
  /** Resolves to true when all rows of the user are here, to false when the client is closed before. */
  readonly firstSync: Promise<boolean>
  /** Sends and receives at once, also during a delay. */
  sync(): Promise<Outcome>
  /** Deletes everything on this device, or everything but the waiting changes of the user. */
  wipe(options?: { readonly keepOutbox?: boolean }): Promise<Outcome>
  /** Ends the client; what is stored stays. */
  close(): void
}

type RowOf<D> = D extends TableDefinition<infer Row> ? Row : never

export type Client<T extends Tables> = ClientBase & { readonly [K in keyof T]: Table<RowOf<T[K]>> }
