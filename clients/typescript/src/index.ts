export { createClient } from './client.js'
export type {
  Client,
  ClientBase,
  ClientEvents,
  ClientOptions,
  Conflict,
  Login,
  Outcome,
  OutboxEntry,
  Tables,
} from './types.js'
export type { Clock } from './clock.js'
export type { CredentialsCallback } from './effects/credentials.js'
export type { LiveMode, Transport } from './effects/live.js'
export type { Unsubscribe } from './emitter.js'
export type { Json, JsonObject } from './json.js'
export type { Phase } from './machine/state.js'
export type { ItemOp } from './outbox/item.js'
export type { LocalResult, ServerResult, Write } from './outbox/writes.js'
export type { Presence, PresenceStatus } from './presence.js'
export type { ClientError, Status } from './status.js'
export { StoreError } from './store/store.js'
export type { Check, Durability, Entry, Key, Op, Read, Space, Store } from './store/store.js'
export type { Query, QueryOptions, QueryPhase, QuerySnapshot } from './tables/query.js'
export { table } from './tables/table.js'
export type {
  ConflictRow,
  Message,
  MessageTable,
  NewRow,
  ReadableTable,
  Table,
  TableDefinition,
  User,
} from './tables/table.js'
export type { Comparison, Direction, OrderBy, Where } from './tables/where.js'
