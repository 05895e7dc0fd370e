import type { Item } from '../outbox/item.js'
import type { JsonObject } from '../json.js'

/** The states of `docs/sync-protocol.md`. Being offline is not a state. */
export type Phase = 'unenrolled' | 'fresh' | 'snapshot' | 'stream'

/** What the device stores about itself, in one record. */
export type Device = {
  /** Chosen by the device, and stored before it is first sent. */
  readonly deviceId: string | null
  readonly token: string | null
  readonly userId: string | null
  /** What the device exchanges for a token, kept until the response is stored. */
  readonly enrollment: Enrollment | null
  /** Why the last enrollment failed, or that this device was revoked, until the next one begins. */
  readonly refusal: Refusal | null
  readonly cursor: string | null
  /** Rows of a lower generation are old: the current snapshot has not sent them. */
  readonly generation: number
  readonly inSnapshot: boolean
  readonly ackedSeq: number
  readonly lastEventId: string | null
  /** Whether a snapshot of this user was ever complete. */
  readonly hasSynced: boolean
  /** When the last sync ended, in ms since 1970. */
  readonly lastSyncedAt: number | null
  /** The audiences that the user joined, as in `via`: `list:42`. */
  readonly groups: readonly string[]
  /** Conflicts that the user has decided here, and that the server still lists as open. */
  readonly decided: readonly string[]
  /** Conflicts that batches have closed while the results of sent changes are missing: one of these may name them. */
  readonly closed: readonly string[]
  /** Changes of former users of this storage, until they return. */
  readonly parked: readonly Parked[]
}

export type Enrollment = { readonly by: 'code' | 'user'; readonly token: string }

export type Refusal = { readonly code: string; readonly message: string }

export type Parked = {
  readonly userId: string
  readonly ackedSeq: number
  readonly outbox: readonly Item[]
}

/** A row as stored. */
export type StoredRow = {
  readonly row: JsonObject
  readonly generation: number
  /** The number of the own upload that stored it: a batch with a lower one is older than what the user sees. */
  readonly own?: number
  /** An own upload deleted it: what batches bring of it is from before, until they bring the deletion. */
  readonly isDeleted?: true
  /** Who sees it, of tables that groups see. Empty: only results of own uploads have brought it. */
  readonly via?: readonly string[]
}

/** What happened to a change. It stays until the user has seen a refusal, or the tab that wrote it has the result. */
export type StoredResult = {
  readonly item: Item
  readonly status: 'applied' | 'duplicate' | 'conflict' | 'rejected'
  readonly code: string | null
  readonly message: string | null
  readonly version: number | null
  readonly winner: 'mine' | 'theirs' | null
  readonly conflictId: string | null
  readonly server: JsonObject | null
  /** Whether the user must see it: it was refused, or lost its conflict. Null: once a batch brings the conflict. */
  readonly isOpen: boolean | null
  /** Of the device when the result came: a conflict of an earlier one was there when the snapshot began. */
  readonly generation: number
}

/** Why a request had no effect that the device may rely on. */
export type Failure =
  | { readonly kind: 'lost'; readonly message: string }
  | { readonly kind: 'later'; readonly code: string; readonly message: string; readonly retryAfter: number | null }
  | { readonly kind: 'ended'; readonly code: string; readonly message: string }
  | {
      readonly kind: 'refused'
      readonly status: number
      readonly code: string
      readonly message: string
      readonly expected: number | null
    }

/** One kind of request: whether it is wanted, and whether it waits after failures. */
export type Lane = {
  readonly wanted: boolean
  /** `server`: the server named the delay, which no hint shortens. */
  readonly pause: 'none' | 'backoff' | 'server'
  readonly failures: number
  readonly error: Failure | null
}

export type Live = {
  readonly wanted: boolean
  readonly status: 'closed' | 'opening' | 'open' | 'waiting'
  /** Whether a hint may shorten the wait. */
  readonly isServerDelay: boolean
  readonly failures: number
  readonly error: Failure | null
  /** The last event received. */
  readonly seen: string | null
  /** The last event received before the latest request for a batch. */
  readonly covered: string | null
}

export type Busy = 'up' | 'resolve' | 'down' | 'ack' | 'enroll' | 'credentials'

export type State = {
  readonly device: Device
  /** In the order of `seq`. */
  readonly outbox: readonly Item[]
  /** Only the leader sends requests. */
  readonly leads: boolean
  readonly hasCredentials: boolean
  readonly busy: Busy | null
  /** Answers with an older ticket belong to an abandoned request. */
  readonly ticket: number
  /** The last `seq` of the upload in flight. */
  readonly sentUpTo: number
  readonly uploadMax: number
  readonly isUnacknowledged: boolean
  readonly up: Lane
  readonly down: Lane
  readonly auth: Lane & { readonly reason: 'start' | 'refused'; readonly refused: string | null }
  readonly live: Live
  /** Rows of the snapshot in progress, of all or of a group that was joined. */
  readonly progress: number
}

export const UPLOAD_ITEMS_MAX = 500

/** Of `closed`: more than a user decides while one answer is missing. */
export const CLOSED_MAX = 1000

const LANE: Lane = { wanted: false, pause: 'none', failures: 0, error: null }

const LIVE: Live = {
  wanted: false,
  status: 'closed',
  isServerDelay: false,
  failures: 0,
  error: null,
  seen: null,
  covered: null,
}

/** What a new device stores. */
export const EMPTY_DEVICE: Device = {
  deviceId: null,
  token: null,
  userId: null,
  enrollment: null,
  refusal: null,
  cursor: null,
  generation: 0,
  inSnapshot: false,
  ackedSeq: 0,
  lastEventId: null,
  hasSynced: false,
  lastSyncedAt: null,
  groups: [],
  decided: [],
  closed: [],
  parked: [],
}

export const INITIAL: State = {
  device: EMPTY_DEVICE,
  outbox: [],
  leads: false,
  hasCredentials: false,
  busy: null,
  ticket: 0,
  sentUpTo: 0,
  uploadMax: UPLOAD_ITEMS_MAX,
  isUnacknowledged: false,
  up: LANE,
  down: LANE,
  auth: { ...LANE, reason: 'start', refused: null },
  live: LIVE,
  progress: 0,
}

export function phase({ token, cursor, inSnapshot }: Device): Phase {
  if (token === null) return 'unenrolled'
  if (cursor === null) return 'fresh'
  return inSnapshot ? 'snapshot' : 'stream'
}

/** The name of a row among all tables; table names contain no NUL. */
export function rowName(table: string, id: string): string {
  return `${table}\0${id}`
}
