import type { LiveMode, Transport } from './effects/live.js'
import type { Failure, Phase, State, StoredResult } from './machine/state.js'
import { phase } from './machine/state.js'
import type { StoreError } from './store/store.js'

export type ClientError = {
  /** Where: receiving, sending, the stream, credentials, or the storage. */
  readonly at: 'down' | 'up' | 'live' | 'auth' | 'store'
  readonly code: string
  readonly message: string
  /** When the client tries again, in ms since 1970; null: not by itself. */
  readonly retryAt: number | null
}

/** What an app shows of its sync. The same in all tabs, except `leader`. */
export type Status = {
  readonly state: Phase
  readonly live: Transport | 'poll' | 'connecting' | 'off'
  /** Whether the last request was answered. */
  readonly online: boolean
  /** Whether this tab holds the stream. */
  readonly leader: boolean
  /** `evictable`: the browser may delete it when the disk is full. */
  readonly storage: 'persistent' | 'evictable' | 'memory'
  /** Whether all rows of the user were here once. */
  readonly hasSynced: boolean
  /** Whether the rows are those of the server, as far as this client was notified. */
  readonly upToDate: boolean
  /** In ms since 1970. */
  readonly lastSyncedAt: number | null
  /** Rows received of the snapshot in progress, of all or of a group that was joined. */
  readonly progress: { readonly rows: number } | null
  readonly outbox: {
    readonly waiting: number
    /** When the first waiting change was made, in ms since 1970. */
    readonly oldest: number | null
    readonly rejected: number
    readonly conflicts: number
  }
  readonly error: ClientError | null
}

export const INITIAL_STATUS: Status = {
  state: 'unenrolled',
  live: 'off',
  online: true,
  leader: false,
  storage: 'memory',
  hasSynced: false,
  upToDate: false,
  lastSyncedAt: null,
  progress: null,
  outbox: { waiting: 0, oldest: null, rejected: 0, conflicts: 0 },
  error: null,
}

export type StatusInputs = {
  readonly state: State
  readonly storage: Status['storage']
  readonly storeError: StoreError | null
  /** The part that syncs could not be loaded. */
  readonly loadError: ClientError | null
  readonly transport: Transport | null
  readonly mode: LiveMode
  readonly retryAt: ReadonlyMap<string, number> | undefined
  readonly open: readonly StoredResult[]
}

export function statusOf(inputs: StatusInputs): Status {
  const { state, storage, mode, open } = inputs
  const { device, outbox, live, down, up, busy } = state
  const isNotified = live.status === 'open' || mode === 'poll' || mode === 'off'
  const isIdle = busy !== 'down' && !down.wanted && !down.error
  const first = outbox[0]
  const conflicts = open.filter(({ status }) => status === 'conflict').length
  return {
    state: phase(device),
    live: liveOf(inputs),
    // A stream may end for many reasons; one that cannot be opened again is a request without an answer.
    online: [down, up].every(isAnswered) && (live.failures < 2 || isAnswered(live)),
    leader: state.leads,
    storage,
    hasSynced: device.hasSynced,
    upToDate: phase(device) === 'stream' && isIdle && isNotified,
    lastSyncedAt: device.lastSyncedAt,
    progress: device.inSnapshot || state.progress > 0 ? { rows: state.progress } : null,
    outbox: {
      waiting: outbox.length,
      oldest: first ? Date.parse(first.at) : null,
      rejected: open.length - conflicts,
      conflicts,
    },
    error: errorOf(inputs),
  }
}

function isAnswered({ error }: { readonly error: Failure | null }): boolean {
  return error?.kind !== 'lost'
}

function liveOf({ state: { live, device }, transport, mode }: StatusInputs): Status['live'] {
  if (live.status === 'open' && transport) return transport
  if (device.token === null) return 'off'
  if (mode === 'poll') return 'poll'
  return live.wanted ? 'connecting' : 'off'
}

/** The first thing that the user or the app can do something about. */
function errorOf({ state, storeError, loadError, retryAt }: StatusInputs): ClientError | null {
  if (storeError) return { at: 'store', code: storeError.code, message: storeError.message, retryAt: null }
  if (loadError) return loadError
  const { refusal } = state.device
  if (refusal) return { at: 'auth', ...refusal, retryAt: null }
  for (const at of ['auth', 'down', 'up', 'live'] as const) {
    const { error } = state[at]
    if (error) return { at, code: codeOf(error), message: error.message, retryAt: retryAt?.get(at) ?? null }
  }
  return null
}

export function codeOf(failure: Failure): string {
  return failure.kind === 'lost' ? 'LOCAL_NO_ANSWER' : failure.code
}
