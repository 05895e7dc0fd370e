/** What the admin API returns. */

export type Level = 'ok' | 'warn' | 'fail'

export type About = { version: string; engine: string }

export type Session = {
  version: string
  engine: string
  /** Whether `admin.actions` is set: without it the console only shows. */
  actions: boolean
  /** `null` for a program that sends the admin token. */
  csrf: string | null
  expires_at: string | null
}

/** Columns of the ring, in the order in which the engine sends them. */
export type Column =
  | 'at'
  | 'age_seconds'
  | 'received_bytes'
  | 'published_bytes'
  | 'durable_bytes'
  | 'acknowledged_bytes'
  | 'rows_per_second'
  | 'commit_to_stream_p50_ms'
  | 'commit_to_stream_p99_ms'
  | 'retained_bytes'
  | 'streams_open'
  | 'uploads_applied'
  | 'uploads_duplicate'
  | 'uploads_conflict'
  | 'uploads_rejected'
  | 'requests_per_second'

export type Row = (number | null)[]

export type FiguresHistory = { columns: string[]; seconds: number; rows: Row[] }

export type Verdict = { level: Level; sentence: string; command: string | null; screen: string | null }

export type Problem = { level: Level; name: string; sentence: string; command: string | null; screen: string | null }

export type Figures = {
  /** Seconds since 1970. */
  at: number
  engine: string
  version: string
  row: Row
  verdict: Verdict
  problems: Problem[]
  bound_seconds: number
  /** Whether what clients see is fresh and comes from servers that answer. */
  ready: boolean
  /** `here`: whether this process has a replicator. */
  replication: { state: string; since: number | null; here: boolean; problem: string | null }
  /** `since`: when this process first saw it. */
  epoch: { number: number; since: string } | null
  slots: SlotReport[] | null
  redis: { used_memory_bytes: number; maxmemory_bytes: number | null } | null
  devices: { online: number; seen_24h: number; enrolled: number } | null
  streams_open: number | null
  /** Uploaded items that the engine has rejected since it started, by the code of the cause. */
  rejections: Record<string, number>
  tenants: { total: number; paused: number; quarantined: number } | null
}

export type SlotReport = {
  name: string
  slot_type: string
  plugin: string | null
  database: string | null
  temporary: boolean
  active: boolean
  reader: { pid: number; application: string | null; address: string | null } | null
  restart_lsn: string | null
  confirmed_lsn: string | null
  wal_status: string | null
  safe_wal_bytes: number | null
  failover: boolean | null
  synced: boolean | null
  inactive_seconds: number | null
  invalidation_reason: string | null
  ours: boolean
  retained_wal_bytes: number | null
  lag_bytes: number | null
  lag_seconds: number | null
  wal_bytes_per_second: number
  lost: string
  lost_in_seconds: number | null
  verdict: string
  command: string | null
}

export type Slots = { slots: SlotReport[]; wal_position: string; keep_bytes: number | null }

export type Epoch = { number: number; id: string; reason: string; start_lsn: string; started_at: string }

export type TenantRow = {
  name: string
  state: string
  users: number | null
  devices: number | null
  open_conflicts: number | null
  changes: number | null
  shared: number | null
  quarantine: number | null
  error: string | null
}

export type TenantDetail = {
  name: string
  schema: string
  state: string
  created_at: string
  generation: number | null
  registration_open: boolean
  web_users: number
  mobile_users: number
  disabled_users: number
  devices: number
  revoked_devices: number
  open_conflicts: number
  streams: {
    changes: number | null
    shared: number | null
    quarantine: number | null
    inboxes: number | null
    inbox_entries: number | null
    longest_inbox: number | null
    memory_bytes: number
    budget_bytes: number
    exceeded: boolean
    error: string | null
  }
}

export type Device = {
  device_id: string
  user_id: string
  username: string
  device_type: string
  name: string | null
  device_info: Record<string, unknown> | null
  created_at: string
  last_seen_at: string | null
  revoked_at: string | null
  sync: {
    status: string
    last_sync_at: string | null
    acknowledged: string | null
    epoch: string | null
    pending_outgoing_count: number | null
    error: string | null
  } | null
  /** `null` while Redis does not answer. */
  behind: { rows: number | null; at_least: boolean; seconds: number | null } | null
}

export type Devices = { devices: Device[]; has_more: boolean }

export type DeviceDetail = Device & { history: AuditEntry[] }

export type AuditEntry = {
  id: number | string
  at: string
  tenant: string | null
  actor: string
  action: string
  subject: string | null
  address: string | null
  detail: unknown
}

export type Audit = { entries: AuditEntry[]; actions: string[] }

export type Mark = { id: string; commit_lsn?: string; time: string | null }

export type StreamReport = {
  stream: string
  key: string
  type: string
  length: number
  first: Mark | null
  last: Mark | null
  memory_bytes: number
  bytes_max: number | null
  trimmed_below: string | null
  stopped: string | null
}

export type TenantStreams = {
  tenant: string
  state: string | null
  generation: number | null
  memory_bytes: number
  budget_bytes: number
  exceeded: boolean
  changes: StreamReport
  shared: StreamReport
  inboxes: {
    count: number
    unusable: number
    entries: number
    memory_bytes: number
    bytes_max: number
    longest: { user_id: string; length: number } | null
    largest: { user_id: string; memory_bytes: number } | null
  }
  push: StreamReport
  quarantine: StreamReport
  stopped: { stream: string; cause: string }[]
  error: string | null
}

export type Streams = {
  epoch: string | null
  position: string | null
  live: StreamReport | null
  tenants: TenantStreams[]
}

export type Group = {
  name: string
  consumers: number
  pending: number
  last_delivered: string
  lag: number
  lag_at_least: boolean
  missed: 'none' | 'some' | number
  oldest_pending: { id: string; consumer: string; idle_ms: number; deliveries: number } | null
}

export type QuarantineEntry = {
  id: string
  time: string | null
  position: string | null
  kind: string | null
  cause: string
  table: string | null
  row_id: string | null
  fields: Record<string, string>
  remedy: { action: string; why: string | null }
}

export type Quarantine = { count: number; entries: QuarantineEntry[] }

export type Conflict = {
  id: string
  table: string
  row_id: string | null
  user_id: string
  username: string | null
  device_id: string | null
  base_version: number
  strategy: string
  created_at: string
  resolved_at: string | null
  resolution: 'client' | 'server' | 'merged' | null
  client: Record<string, unknown> | null
  server: Record<string, unknown> | null
}

export type Conflicts = { conflicts: Conflict[]; has_more: boolean }

export type DoctorCheck = {
  name: string
  level: Level
  found: string
  meaning: string | null
  fix: string[]
  then: string | null
}

export type TraceChange = {
  id: string
  tenant: string
  table: string
  op: string
  row_id: string | null
  commit_lsn: string
  /** Milliseconds since 1970. */
  committed_at: number | null
  xid: number | string | null
  columns: string[]
}

export type TraceStep = {
  id: string
  step: 'published' | 'durable' | 'notified' | 'delivered' | 'acknowledged'
  device: string | null
  user: string | null
  /** Since the commit; `null` if its time is unknown. */
  ms: number | null
}

export type Done = { done: string }
