import { clock as systemClock, type Clock } from './clock.js'
import { backoff } from './effects/backoff.js'
import { deviceHeaders, Http } from './effects/http.js'
import type { LiveMode } from './effects/live.js'
import { Runner } from './effects/runner.js'
import { Signal } from './emitter.js'
import { isObject, text, type JsonObject } from './json.js'
import type { Notice } from './machine/effect.js'
import type { RowId } from './machine/event.js'
import type { StoredResult } from './machine/state.js'
import { entryOf, failed, failedStatus } from './outcome.js'
import type { ItemOp } from './outbox/item.js'
import { Writes, type Write } from './outbox/writes.js'
import { PresenceStore } from './presence.js'
import { Session } from './session/session.js'
import { codeOf, INITIAL_STATUS, statusOf, type Status } from './status.js'
import type { Store } from './store/store.js'
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
  Login,
  Outcome,
  OutboxEntry,
  Tables,
} from './types.js'

/** How long a login waits for the server to add the device. */
const ENROLL_MS = 60_000

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
  readonly #http: Http
  readonly #store: Store
  readonly #session: Session
  readonly #runner: Runner
  readonly #writes: Writes
  readonly #leader: Leader
  /** Opened with the storage: a client without one must not keep a server running. */
  #channel: Channel = NO_CHANNEL
  readonly #presence: PresenceStore
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
    this.#clock = environment.clock ?? systemClock
    this.#http = new Http(options.url, this.#clock, environment.fetch)
    this.#store = store
    this.#mode = live
    this.#storage = store.kind === 'memory' ? 'memory' : store.kind === 'sqlite' ? 'persistent' : 'evictable'
    this.#statusSignal = new Signal(this.#report)
    this.#stepSignal = new Signal(this.#report)
    this.#presence = new PresenceStore(this.#report)
    this.#session = new Session(store, this.#clock, {
      run: (effect) => this.#runner.run(effect),
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
    const isBrowser = typeof document !== 'undefined'
    this.#runner = new Runner(this.#session, {
      http: this.#http,
      clock: this.#clock,
      live,
      presence: options.presence ?? false,
      WebSocket: environment.WebSocket ?? globalThis.WebSocket,
      credentials: options.credentials,
      device:
        options.device ??
        (isBrowser ? { name: 'Browser', type: 'browser' } : { name: 'Posduif client', type: 'desktop' }),
    })
    this.#leader = new Leader({
      name: store.sharedName,
      locks: environment.locks ?? globalThis.navigator?.locks,
      clock: this.#clock,
      isVisible,
      ping: () => this.#channel.post({ type: 'ping' }),
      beat: () => this.#beat(),
      onLead: () => void this.#lead(),
      onLose: () => {
        this.#runner.stop()
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
    await this.#readOpen()
    if (this.#store.kind === 'indexeddb') await this.#persist()
  }

  async #lead(): Promise<void> {
    this.#leaderStatus = null
    const isLive = this.#mode !== 'off' && this.#mode !== 'poll'
    const error = await this.#session.lead(isLive, this.#options.credentials !== undefined)
    if (!this.#leader.leads) return
    if (error) return this.#recover()
    this.#failures = 0
    // A former leader may have stopped between storing and notifying.
    this.#channel.post({ type: 'changed', rows: null })
    this.#beat()
  }

  /** The storage failed: begin again from what it has, after a delay. */
  #recover(): void {
    this.#runner.stop()
    this.#cancelRecovery()
    if (this.#isClosed || this.#isOutdated) return
    this.#failures += 1
    this.#cancelRecovery = this.#clock.schedule(
      () => {
        if (this.#leader.leads) void this.#lead()
        else void this.#begin()
      },
      backoff(this.#failures, null, this.#clock.random()),
    )
  }

  #lost(reason: 'outdated' | 'closed'): void {
    if (reason === 'closed') return this.#recover()
    this.#isOutdated = true
    this.#leader.stop()
    this.#emit('outdated', {})
  }

  #deposed(): void {
    this.#runner.stop()
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
        return this.#applyPresence(notice.data)
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

  #applyPresence(data: JsonObject): void {
    if (data['truncated'] !== true) {
      this.#presence.apply(data['users'], data['snapshot'] === true)
      return this.#beat()
    }
    // All clients receive this event at once.
    this.#clock.schedule(() => void this.#readPresence(), 5000 * this.#clock.random())
  }

  async #readPresence(): Promise<void> {
    const { deviceId, token } = this.#session.state.device
    if (deviceId === null || token === null) return
    const headers = deviceHeaders({ deviceId, token })
    const answer = await this.#http.send({ method: 'GET', path: '/api/presence', headers })
    if (answer.ok && isObject(answer.body)) this.#presence.apply(answer.body['presence'], true)
    this.#beat()
  }

  // ---------------------------------------------------------------------------------------------------------- status

  #refreshStatus(): void {
    if (this.#isClosed) return
    this.#runner.poll()
    this.#stepSignal.notify()
    const { state, storeError } = this.#session
    const own = statusOf({
      state,
      storeError,
      storage: this.#storage,
      transport: this.#runner.transport,
      mode: this.#mode,
      retryAt: this.#runner.retryAt,
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
      login: (login) => this.#login(login),
      enroll: (url) =>
        this.#enroll({
          by: 'code',
          token:
            url
              .split('/api/enrollment/')
              .at(-1)
              ?.replace(/[?#/].*$/s, '') ?? '',
        }),
      firstSync,
      sync: () => this.#sync(),
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

  async #login({ username, email, password, code, tenant }: Login): Promise<Outcome> {
    const answer = await this.#http.send({
      method: 'POST',
      path: '/api/auth/login',
      body: { username, email, password, code, tenant },
    })
    if (!answer.ok) {
      const { failure } = answer
      const seconds = failure.kind === 'later' ? failure.retryAfter : null
      return {
        ok: false,
        code: codeOf(failure),
        message: failure.message,
        retryAt: seconds === null ? null : this.#clock.now() + seconds,
      }
    }
    const token = isObject(answer.body) ? text(answer.body['token']) : null
    if (token === null) return { ok: false, code: 'LOCAL_NO_ANSWER', message: 'the response is not a login' }
    const outcome = await this.#enroll({ by: 'user', token })
    // The device has a token of its own; the session was needed to add it.
    void this.#http.send({ method: 'POST', path: '/api/auth/logout', headers: { authorization: `Bearer ${token}` } })
    return outcome
  }

  async #enroll(enrollment: { by: 'code' | 'user'; token: string }): Promise<Outcome> {
    if (enrollment.token === '')
      return { ok: false, code: 'LOCAL_INVALID', message: 'the address of an enrollment ends with its token' }
    const before = this.#session.state.device.token
    const error = await this.#session.dispatch({ type: 'enroll', enrollment, freshId: this.#clock.uuid() })
    if (error) return failed(error)
    await this.#until(() => this.#session.state.device.enrollment === null, ENROLL_MS)
    const { device, auth } = this.#session.state
    if (device.enrollment === null && device.token !== null && device.token !== before) return { ok: true }
    if (device.refusal) return { ok: false, ...device.refusal }
    const message = auth.error?.message ?? 'the server has not answered yet; the client repeats the request'
    return { ok: false, code: 'LOCAL_NO_ANSWER', message }
  }

  async #sync(): Promise<Outcome> {
    if (this.#isClosed) return { ok: false, code: 'LOCAL_CLOSED', message: 'the client is closed' }
    if (!this.#leader.leads) {
      this.#channel.post({ type: 'sync', by: 'user' })
      // The leader's status shows the rest.
      const isDone = await this.#until(() => this.#status.upToDate && this.#status.outbox.waiting === 0, SYNC_MS)
      return isDone ? { ok: true } : failedStatus(this.#status)
    }
    const error = await this.#session.dispatch({ type: 'sync', by: 'user' })
    if (error) return failed(error)
    const isIdle = await this.#until(() => {
      const { busy, up, down, auth, outbox } = this.#session.state
      const isRunning = (lane: { wanted: boolean; pause: string }) => lane.wanted && lane.pause === 'none'
      const { token, enrollment, decided } = this.#session.state.device
      if (busy) return false
      if (token === null) return !(isRunning(auth) && (enrollment || this.#options.credentials))
      return !(isRunning(up) && outbox.length + decided.length > 0) && !isRunning(down)
    }, SYNC_MS)
    const { error: problem, state } = this.#status
    const isFailed = !isIdle || state === 'unenrolled' || (problem && problem.at !== 'live')
    return isFailed ? failedStatus(this.#status) : { ok: true }
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
    this.#leader.stop()
    this.#runner.stop()
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
