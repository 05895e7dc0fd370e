import { systemClock, type Clock } from './clock.js'
import { backoff } from './effects/backoff.js'
import type { LiveMode } from './effects/live.js'
import { Signal } from './emitter.js'
import type { JsonObject } from './json.js'
import type { Notice } from './machine/effect.js'
import type { RowId } from './machine/event.js'
import type { StoredResult } from './machine/state.js'
import { entryOf, failed, failedStatus } from './outcome.js'
import type { ItemOp } from './outbox/item.js'
import { Writes, type Write } from './outbox/writes.js'
import { PresenceStore } from './presence.js'
import { Session } from './session/session.js'
import { INITIAL_STATUS, statusOf, type ClientError, type Status } from './status.js'
import type { Store } from './store/store.js'
import type { Sync } from './sync/index.js'
import { createQuery, type Query, type QueryOptions } from './tables/query.js'
import { createTable, type ConflictRow, type MessageTable, type User } from './tables/table.js'
import { NO_CHANNEL, openChannel, type Channel, type Message as TabMessage } from './tabs/channel.js'
import { Leader } from './tabs/leader.js'
import { isVisible, watchPage } from './tabs/lifecycle.js'
import type {
  Client,
  ClientBase,
  ClientEvents,
  ClientOptions,
  Conflict,
  Outcome,
  OutboxEntry,
  Tables,
} from './types.js'

const CLOSED: Outcome = { ok: false, code: 'LOCAL_CLOSED', message: 'the client is closed' }

/** How long the part that syncs may take to arrive. */
const LOAD_MS = 30_000

/** How long `sync` waits; a snapshot may take longer. */
const SYNC_MS = 60_000

/** Creates a client, which opens its storage at once. */
export function createClient<const T extends Tables = Record<never, never>>(options: ClientOptions<T>): Client<T> {
  const core = new Core(options)
  const base: ClientBase = core.base()
  const tables: Record<string, unknown> = {}
  for (const [key, definition] of Object.entries(options.tables ?? {})) {
    if (key in base)
      throw new Error(
        `tables.${key}: the client has a member of this name; use another key with table({ name: '${key}' })`,
      )
    tables[key] = createTable(core, definition.name ?? key, definition.merge === 'columns')
  }
  core.start()
  return Object.defineProperties(tables, Object.getOwnPropertyDescriptors(base)) as Client<T>
}

class Core {
  readonly #options: ClientOptions<Tables>
  readonly #clock: Clock
  readonly #store: Store
  readonly #session: Session
  readonly #writes: Writes
  readonly #leader: Leader
  /** Opened with the storage: a client without one must not keep a server running. */
  #channel: Channel = NO_CHANNEL
  readonly #presence: PresenceStore
  /** The part that talks to the server, loaded once the storage is open. */
  #sync: Sync | null = null
  #loading: Promise<Sync | null> | null = null
  #loadError: ClientError | null = null
  #endLoading = () => {}
  readonly #statusSignal: Signal
  /** Of every step, also those that the status does not show. */
  readonly #stepSignal: Signal
  readonly #handlers = new Map<string, Set<(event: never) => void>>()
  readonly #mode: LiveMode
  #status: Status = INITIAL_STATUS
  /** The leader's, while another tab leads. */
  #leaderStatus: Status | null = null
  #leaderTerm = 0
  #storage: Status['storage']
  /** What the user has to decide, by key: refused changes and lost conflicts. */
  #open: ReadonlyMap<string, StoredResult> = new Map()
  #stopPage = () => {}
  #cancelRecovery = () => {}
  #failures = 0
  #isClosed = false
  #isOutdated = false
  /** What other tabs have changed since the last reload; null: nothing. */
  #dirty: { rows: RowId[] | null } | null = null

  constructor(options: ClientOptions<Tables>) {
    const { environment = {}, store, live = 'auto' } = options
    this.#options = options
    this.#clock = environment.clock ?? systemClock()
    this.#store = store
    this.#mode = live
    this.#storage = store.kind === 'memory' ? 'memory' : store.kind === 'sqlite' ? 'persistent' : 'evictable'
    this.#statusSignal = new Signal(this.#report)
    this.#stepSignal = new Signal(this.#report)
    this.#presence = new PresenceStore(this.#report)
    this.#session = new Session(store, {
      run: (effect) => this.#sync?.runner.run(effect),
      notify: (notice) => this.#notify(notice),
      stored: ({ rows, hasResults }) => {
        this.#channel.post({ type: 'changed', rows })
        if (hasResults) void this.#readOpen()
      },
      changed: () => this.#refreshStatus(),
      deposed: () => this.#deposed(),
      failed: () => this.#recover(),
      appended: (writes) => this.#writes.appended(writes),
      waiting: () => this.#writes.waiting(),
      settled: (results) => this.#writes.settle(results),
    })
    this.#writes = new Writes((writes) => this.#session.write(writes))
    this.#leader = new Leader({
      name: store.sharedName,
      locks: environment.locks ?? globalThis.navigator?.locks,
      clock: this.#clock,
      isVisible,
      ping: () => this.#channel.post({ type: 'ping' }),
      beat: () => this.#beat(),
      onLead: () => void this.#lead(),
      onLose: () => {
        this.#sync?.runner.stop()
        void this.#session.resign()
      },
    })
  }

  start(): void {
    this.#stopPage = watchPage(this.#clock, {
      onHint: () => this.#hint(),
      onSuspend: () => {
        this.#leader.stop()
        this.#store.close()
      },
      onResume: () => {
        void this.#session.reload(null)
        this.#leader.start()
      },
      onHiddenLong: () => this.#leader.stop(),
      onVisible: () => this.#isOutdated || this.#leader.start(),
    })
    void this.#begin()
  }

  async #begin(): Promise<void> {
    const error = await this.#session.start((reason) => this.#lost(reason))
    if (this.#isClosed) return
    if (error) return error.code === 'LOCAL_NO_STORE' ? undefined : this.#recover()
    if (this.#channel === NO_CHANNEL) {
      this.#channel = openChannel(this.#store.sharedName, (message) => this.#receive(message))
      // What other tabs have changed between the first read and now.
      void this.#session.reload(null)
    }
    this.#leader.start()
    // Also without the lead: the tab may need it when it has no network.
    void this.#load()
    await this.#readOpen()
    if (this.#store.kind === 'indexeddb') await this.#persist()
  }

  /** Loads the part that syncs; null: it could not be loaded, or the client was closed. */
  #load(): Promise<Sync | null> {
    this.#loading ??= this.#loadSync()
    return this.#loading
  }

  async #loadSync(): Promise<Sync | null> {
    const load = this.#options.sync ?? (() => import('./sync/index.js'))
    let cancel = () => {}
    const ended = new Promise<never>((_, reject) => {
      this.#endLoading = () => reject(new Error(`no answer within ${LOAD_MS / 1000} s`))
      cancel = this.#clock.schedule(this.#endLoading, LOAD_MS)
    })
    try {
      const { Sync } = await Promise.race([Promise.resolve().then(load), ended])
      if (this.#isClosed) return null
      this.#sync = new Sync({
        session: this.#session,
        clock: this.#clock,
        options: this.#options,
        live: this.#mode,
        until: (holds, ms) => this.#until(holds, ms),
        present: (users, isComplete) => {
          this.#presence.apply(users, isComplete)
          this.#beat()
        },
      })
      if (this.#loadError && !this.#isOutdated) {
        this.#cancelRecovery()
        this.#leader.start()
      }
      this.#loadError = null
      return this.#sync
    } catch (error) {
      this.#loading = null
      const reason = error instanceof Error ? error.message : String(error)
      const message = 'the part of the client that syncs could not be loaded, changes are kept; if this stays, reload the page'
      this.#loadError = { at: 'down', code: 'LOCAL_LOAD_FAILED', message: `${message}: ${reason}`, retryAt: null }
      return null
    } finally {
      cancel()
    }
  }

  async #lead(): Promise<void> {
    this.#leaderStatus = null
    const sync = await this.#load()
    if (!this.#leader.leads) return
    if (!sync) {
      // Another tab may have it, as one that was opened before a deployment.
      this.#leader.stop()
      return this.#recover()
    }
    const error = await sync.lead()
    if (!this.#leader.leads) return
    if (error) return this.#recover()
    this.#failures = 0
    // A former leader may have stopped between storing and notifying.
    this.#channel.post({ type: 'changed', rows: null })
    this.#beat()
  }

  /** The storage failed, or what leads could not be loaded: begin again from what is stored, after a delay. */
  #recover(): void {
    this.#sync?.runner.stop()
    this.#cancelRecovery()
    if (this.#isClosed || this.#isOutdated) return
    this.#failures += 1
    const ms = backoff(this.#failures, null, this.#clock.random())
    this.#cancelRecovery = this.#clock.schedule(() => this.#beginAgain(), ms)
    if (!this.#loadError) return
    this.#loadError = { ...this.#loadError, retryAt: this.#clock.now() + ms }
    this.#refreshStatus()
  }

  #beginAgain(): void {
    this.#cancelRecovery()
    if (this.#leader.leads) void this.#lead()
    else void this.#begin()
  }

  #lost(reason: 'outdated' | 'closed'): void {
    if (reason === 'closed') return this.#recover()
    this.#isOutdated = true
    this.#leader.stop()
    this.#emit('outdated', {})
  }

  #deposed(): void {
    this.#sync?.runner.stop()
    this.#leader.stop()
    // Where no lock decides, two clients would depose each other without end.
    if (this.#store.sharedName !== null) this.#leader.start()
  }

  async #persist(): Promise<void> {
    try {
      const { storage } = navigator
      if ((await storage.persisted()) || (await storage.persist())) this.#storage = 'persistent'
    } catch {
      // Not in a secure context, or not in this browser: it stays evictable.
    }
    this.#refreshStatus()
  }

  #hint(): void {
    if (this.#isOutdated) return
    if (this.#leader.leads) void this.#session.dispatch({ type: 'sync', by: 'hint' })
    else this.#channel.post({ type: 'sync', by: 'hint' })
    if (this.#loadError) this.#beginAgain()
  }

  // ------------------------------------------------------------------------------------------------------ other tabs

  #beat(): void {
    if (!this.#leader.leads) return
    const presence = this.#options.presence ? [...this.#presence.getSnapshot()] : undefined
    this.#channel.post({ type: 'beat', term: this.#session.term, status: this.#status, ...(presence && { presence }) })
  }

  #receive(message: TabMessage): void {
    if (this.#isClosed || this.#isOutdated) return
    switch (message.type) {
      case 'beat':
        // Of a former leader that does not know it yet.
        if (message.term < this.#leaderTerm) return
        this.#leaderTerm = message.term
        this.#leader.leaderAnswered()
        if (this.#leader.leads) return
        this.#leaderStatus = message.status as Status
        if (message.presence) this.#presence.replace(new Map(message.presence as [string, 'online' | 'away'][]))
        return this.#refreshStatus()
      case 'ping':
        return this.#beat()
      case 'sync':
        if (this.#leader.leads) void this.#session.dispatch({ type: 'sync', by: message.by })
        return
      case 'changed':
        return this.#markDirty(message.rows)
      case 'notice':
        return void this.#receiveNotice(message)
    }
  }

  /** One reload covers all changes so far. */
  #markDirty(rows: readonly RowId[] | null): void {
    const isQueued = this.#dirty !== null
    const before = this.#dirty?.rows ?? null
    this.#dirty = { rows: rows === null || (isQueued && before === null) ? null : [...(before ?? []), ...rows] }
    if (isQueued) return
    queueMicrotask(() => {
      const dirty = this.#dirty
      this.#dirty = null
      if (dirty) void this.#session.reload(dirty.rows).then(() => this.#readOpen())
    })
  }

  async #receiveNotice({ name, key, data }: TabMessage & { type: 'notice' }): Promise<void> {
    if (name === 'conflict') {
      const result = key === null ? null : await this.#session.result(key).catch(() => null)
      if (result) this.#emitResult(result)
    } else if (['reset', 'joined', 'left', 'signedOut', 'deviceAdded', 'message'].includes(name)) {
      this.#emit(name as keyof ClientEvents, data as never)
    }
  }

  #notify(notice: Notice): void {
    switch (notice.name) {
      case 'writeRefused':
        return this.#writes.refuse(notice.key, notice.code, notice.message)
      case 'presence':
        return this.#sync?.presence(notice.data)
      case 'conflict':
        this.#channel.post({ type: 'notice', name: 'conflict', key: notice.result.item.key, data: {} })
        return this.#emitResult(notice.result)
      case 'deviceAdded':
        this.#channel.post({ type: 'notice', name: notice.name, key: null, data: notice.data })
        return this.#emit('deviceAdded', notice.data)
      default: {
        const { name, ...data } = notice
        this.#channel.post({ type: 'notice', name, key: null, data: data as JsonObject })
        return this.#emit(name, data as never)
      }
    }
  }

  // ---------------------------------------------------------------------------------------------------------- status

  #refreshStatus(): void {
    if (this.#isClosed) return
    this.#sync?.runner.poll()
    this.#stepSignal.notify()
    const { state, storeError } = this.#session
    const own = statusOf({
      state,
      storeError,
      loadError: this.#loadError,
      storage: this.#storage,
      transport: this.#sync?.runner.transport ?? null,
      mode: this.#mode,
      retryAt: this.#sync?.runner.retryAt,
      open: [...this.#open.values()],
    })
    // A follower shows what its leader does, and what its own storage has.
    const { state: phase, hasSynced, lastSyncedAt, outbox, storage } = own
    const next: Status =
      state.leads || !this.#leaderStatus || storeError
        ? own
        : { ...this.#leaderStatus, state: phase, hasSynced, lastSyncedAt, outbox, storage, leader: false }
    if (JSON.stringify(next) === JSON.stringify(this.#status)) return
    this.#status = next
    this.#statusSignal.notify()
    if (state.leads) this.#beat()
  }

  /** Reads what the user has to decide, and reports what was not known. */
  async #readOpen(): Promise<void> {
    const results = await this.#session.open()
    if (results && !this.#isClosed) {
      const known = this.#open
      this.#open = new Map(results.map((result) => [result.item.key, result]))
      for (const [key, result] of this.#open) if (!known.has(key)) this.#emitResult(result)
    }
    this.#refreshStatus()
  }

  /** Resolves when a condition of the state holds, to whether it did within the time. */
  #until(holds: () => boolean, ms: number | null): Promise<boolean> {
    return new Promise((resolve) => {
      let cancel = () => {}
      const settle = (result: boolean) => {
        unsubscribe()
        cancel()
        resolve(result)
      }
      const check = () => {
        if (holds()) settle(true)
        else if (this.#isClosed) settle(false)
      }
      const unsubscribe = this.#stepSignal.subscribe(check)
      if (ms !== null) cancel = this.#clock.schedule(() => settle(holds()), ms)
      check()
    })
  }

  // ------------------------------------------------------------------------------------------------------ the interface

  base(): ClientBase {
    const core = this
    const firstSync = this.#until(() => this.#session.state.device.hasSynced, null)
    return {
      messages: createTable(this, 'messages', false) as unknown as MessageTable,
      users: { query: (options = {}) => this.query<User>('users', options) },
      conflicts: { query: (options = {}) => this.query<ConflictRow>('message_conflicts', options) },
      status: { subscribe: this.#statusSignal.subscribe, getSnapshot: () => this.#status },
      presence: this.#presence,
      outbox: {
        list: () => this.#list(),
        retry: (key) => this.#retry(key),
        discard: (key) => this.#discard(key),
      },
      get userId() {
        return core.#session.state.device.userId
      },
      on: (name, handler) => {
        const handlers = this.#handlers.get(name) ?? new Set()
        this.#handlers.set(name, handlers)
        const entry = (event: never) => handler(event)
        handlers.add(entry)
        // What waits for a decision since before, maybe since before a reload.
        for (const result of this.#open.values()) {
          if (result.status === name) this.#deliver(entry, this.#eventOf(result))
        }
        return () => void handlers.delete(entry)
      },
      login: (login) => this.#withSync((sync) => sync.login(login)),
      enroll: (url) => this.#withSync((sync) => sync.enroll(url)),
      firstSync,
      sync: () => this.#syncNow(),
      wipe: ({ keepOutbox = false } = {}) => this.#wipe(keepOutbox),
      close: () => this.#close(),
    }
  }

  query<Row>(table: string, options: QueryOptions<Row>): Query<Row> {
    const host = {
      view: this.#session.view,
      load: (name: string) => this.#session.load(name),
      hasSynced: () => this.#session.state.device.hasSynced,
      onStatus: this.#statusSignal.subscribe,
      schedule: this.#clock.schedule,
      report: this.#report,
    }
    return createQuery<Row>(host, table, options)
  }

  write(op: ItemOp, table: string, id: string | null, columns: object, merges: boolean): Write {
    const key = this.#clock.uuid()
    const at = new Date(this.#clock.now()).toISOString()
    let row: JsonObject | null = null
    try {
      // A copy: later changes of the object are no changes of the row.
      const { id: _, ...rest } = JSON.parse(JSON.stringify(columns)) as { id?: unknown } & JsonObject
      row = table === 'messages' && op === 'create' ? { created_at: at, ...rest } : rest
    } catch {
      // Reported below.
    }
    const write = this.#writes.add({ key, table, op, id: id ?? this.#clock.uuid(), row: row ?? {}, merges, at })
    if (row === null)
      this.#writes.refuse(key, 'LOCAL_INVALID', 'the row cannot be written as JSON: it has a cycle or a BigInt')
    return write
  }

  async #withSync(run: (sync: Sync) => Promise<Outcome>): Promise<Outcome> {
    const sync = await this.#load()
    return sync ? run(sync) : this.#unloaded()
  }

  #unloaded(): Outcome {
    if (this.#isClosed || !this.#loadError) return CLOSED
    const { code, message, retryAt } = this.#loadError
    return { ok: false, code, message, retryAt }
  }

  async #syncNow(): Promise<Outcome> {
    if (this.#isClosed) return CLOSED
    // Without the part that syncs, another tab may have it.
    if (this.#loadError && !this.#leaderStatus && !(await this.#load())) return this.#unloaded()
    if (!this.#leader.leads) {
      this.#channel.post({ type: 'sync', by: 'user' })
      // The leader's status shows the rest, unless this client is about to lead.
      const isDone = () => this.#status.upToDate && this.#status.outbox.waiting === 0
      await this.#until(() => this.#leader.leads || isDone(), SYNC_MS)
      if (!this.#leader.leads) return isDone() ? { ok: true } : failedStatus(this.#status)
    }
    return this.#withSync(async (sync) => {
      const error = await this.#session.dispatch({ type: 'sync', by: 'user' })
      if (error) return failed(error)
      const isIdle = await this.#until(() => sync.isIdle(this.#session.state), SYNC_MS)
      const { error: problem, state } = this.#status
      const isFailed = !isIdle || state === 'unenrolled' || (problem && problem.at !== 'live')
      return isFailed ? failedStatus(this.#status) : { ok: true }
    })
  }

  async #list(): Promise<OutboxEntry[]> {
    const waiting = this.#session.state.outbox.map((item) =>
      entryOf(item, item.sent === 'no' ? 'waiting' : 'sent', null),
    )
    const open = (await this.#session.open()) ?? []
    open.sort((one, other) => (one.item.at < other.item.at ? -1 : 1))
    return [
      ...waiting,
      ...open.map((result) => entryOf(result.item, result.status === 'conflict' ? 'conflict' : 'rejected', result)),
    ]
  }

  async #retry(key: string): Promise<Write | null> {
    const result = await this.#session.result(key).catch(() => null)
    if (!result?.isOpen) return null
    const { table, op, id, row, baseRow } = result.item
    const write = this.#writes.add({
      key: this.#clock.uuid(),
      table,
      op,
      id,
      row,
      merges: baseRow !== undefined,
      at: new Date(this.#clock.now()).toISOString(),
    })
    // Only then is the former one forgotten.
    if ((await write.local).ok) await this.#discard(key)
    return write
  }

  async #discard(key: string): Promise<Outcome> {
    const error = await this.#session.discard(key)
    await this.#readOpen()
    if (error) return failed(error)
    const isSent = this.#session.state.outbox.some((item) => item.key === key)
    const message = 'the change was sent and may have been applied: make another one'
    return isSent ? { ok: false, code: 'LOCAL_SENT', message } : { ok: true }
  }

  async #wipe(keepOutbox: boolean): Promise<Outcome> {
    const error = await this.#session.wipe(keepOutbox)
    await this.#readOpen()
    return error ? failed(error) : { ok: true }
  }

  #close(): void {
    if (this.#isClosed) return
    this.#isClosed = true
    this.#stopPage()
    this.#cancelRecovery()
    this.#endLoading()
    this.#leader.stop()
    this.#sync?.runner.stop()
    this.#channel.close()
    this.#writes.close()
    this.#session.close()
    this.#stepSignal.notify()
    this.#store.close()
  }

  // ---------------------------------------------------------------------------------------------------------- events

  #emitResult(result: StoredResult): void {
    const name = result.status === 'conflict' ? 'conflict' : 'rejected'
    this.#emit(name, this.#eventOf(result) as never)
  }

  #eventOf(result: StoredResult): Conflict | OutboxEntry {
    const { item, status, server, winner } = result
    const { key, table, op, id, row } = item
    if (status !== 'conflict') return entryOf(item, 'rejected', result)
    const mine = op === 'delete' ? null : row
    return { key, table, id, mine, server, winner, resolve: (choice) => this.#resolve(key, choice) }
  }

  async #resolve(key: string, choice: 'mine' | 'server'): Promise<Outcome> {
    if (choice === 'server') return this.#discard(key)
    const write = await this.#retry(key)
    return write ? write.local : { ok: false, code: 'LOCAL_NOT_FOUND', message: 'this conflict was resolved' }
  }

  #emit<Name extends keyof ClientEvents>(name: Name, event: ClientEvents[Name]): void {
    for (const handler of this.#handlers.get(name) ?? []) this.#deliver(handler, event)
  }

  #deliver(handler: (event: never) => void, event: unknown): void {
    queueMicrotask(() => {
      try {
        handler(event as never)
      } catch (error) {
        this.#report(error)
      }
    })
  }

  readonly #report = (error: unknown): void => {
    if (this.#options.onError) this.#options.onError(error)
    else console.error(error)
  }
}
