import {
  createClient,
  table,
  type Client,
  type CredentialsCallback,
  type LiveMode,
  type Message,
  type OutboxEntry,
  type Query,
  type Status,
  type Store,
  type Write,
} from '@posduif/client'
import type { Setup } from './api'
import { isWriting, wrote, type Faults } from './faults'
import type { PaneName } from './journey'
import { until, Value } from './value'

export type Task = {
  readonly id: string
  readonly list_id: string
  readonly title: string
  readonly done: boolean
  readonly created_at?: string
  readonly version?: number
}

export type List = { readonly id: string; readonly name: string; readonly version?: number }

const tables = { tasks: table<Task>(), lists: table<List>() }

/** `revoked`: the device was revoked by an admin. `failed`: it could not be added, for the reason in `problem`. */
export type Access = 'starting' | 'adding' | 'ready' | 'revoked' | 'failed'

export type PaneOptions = {
  readonly name: PaneName
  readonly setup: Setup
  readonly store: Store
  readonly faults: Faults
  readonly live: LiveMode
  readonly device: { readonly name: string; readonly type: 'browser' | 'mobile' }
  /** Texts that this pane writes get a tag. */
  readonly mark: (text: string) => string
  /** Adds the device to the account of its user; returns why it failed. */
  readonly enter: (client: Client<typeof tables>) => Promise<string | null>
  readonly credentials?: CredentialsCallback
}

const START_MS = 15_000

/** One device of the demo: a client with a store, a seam and rows of its own. */
export class Pane {
  readonly name: PaneName
  readonly faults: Faults
  readonly client: Client<typeof tables>
  readonly tasks: Query<Task>
  readonly lists: Query<List>
  readonly messages: Query<Message>
  readonly access: Value<Access> = new Value<Access>('starting')
  readonly problem: Value<string | null> = new Value<string | null>(null)
  readonly outbox: Value<readonly OutboxEntry[]> = new Value<readonly OutboxEntry[]>([])
  /** Since when the stream is open without interruption, in ms since 1970; null: it is not. */
  readonly connectedSince: Value<number | null> = new Value<number | null>(null)
  readonly endedAt: Value<number | null> = new Value<number | null>(null)
  readonly #setup: Setup
  readonly #enter: PaneOptions['enter']
  readonly #mark: (text: string) => string

  constructor({ name, setup, store, faults, live, device, mark, enter, credentials }: PaneOptions) {
    this.name = name
    this.faults = faults
    this.#setup = setup
    this.#enter = enter
    this.#mark = mark
    const Socket = faults.socketClass()
    this.client = createClient({
      url: setup.engine,
      store,
      tables,
      live,
      device,
      ...(credentials && { credentials }),
      environment: { fetch: faults.fetch, ...(Socket && { WebSocket: Socket }) },
    })
    this.tasks = this.client.tasks.query()
    this.lists = this.client.lists.query()
    this.messages = this.client.messages.query({ orderBy: 'created_at' })
    this.client.status.subscribe(() => this.#follow())
    this.client.on('signedOut', ({ code, message }) => this.#signedOut(code, message))
  }

  get status(): Status {
    return this.client.status.getSnapshot()
  }

  async start(): Promise<void> {
    const { client } = this
    const isLoaded = await until([client.status], () => this.status.leader, START_MS)
    if (!isLoaded) return this.#fail('the storage of this browser does not answer')
    if (this.status.state !== 'unenrolled') return this.access.set('ready')
    // The storage has rows of a device whose token has ended.
    if (client.userId !== null && this.name === 'joe') return this.access.set('revoked')
    await this.enter()
  }

  /** Adds this device, again if it was revoked. */
  async enter(): Promise<void> {
    this.access.set('adding')
    this.problem.set(null)
    const problem = await this.#enter(this.client).catch((error: unknown) =>
      error instanceof Error ? error.message : String(error),
    )
    if (problem !== null) return this.#fail(problem)
    this.endedAt.set(null)
    this.access.set('ready')
  }

  setOffline(offline: boolean): void {
    this.faults.setOffline(offline)
    // As the event `online` of a browser would.
    if (!offline) void this.client.sync()
  }

  add(title: string): Write {
    return this.#written(
      this.client.tasks.create({ title: this.#mark(title), done: false, list_id: this.#setup.list.id }),
    )
  }

  rename(id: string, title: string): Write {
    return this.#written(this.client.tasks.edit(id, { title: this.#mark(title) }))
  }

  tick(id: string, done: boolean): Write {
    return this.#written(this.client.tasks.edit(id, { done }))
  }

  remove(id: string): Write {
    return this.#written(this.client.tasks.delete(id))
  }

  send(content: string): Write {
    const recipient = this.name === 'joe' ? 'bob' : 'joe'
    return this.#written(
      this.client.messages.create({ recipient_id: this.#setup.users[recipient], content: this.#mark(content) }),
    )
  }

  async resolve(key: string, choice: 'mine' | 'server'): Promise<void> {
    if (choice === 'mine') await this.client.outbox.retry(key)
    else await this.client.outbox.discard(key)
    await this.refreshOutbox()
  }

  discard(key: string): void {
    void this.client.outbox.discard(key).then(() => this.refreshOutbox())
  }

  isOwn(table: string, id: string, committedAt: number): boolean {
    return wrote(this.faults.uploads.getSnapshot(), table, id, committedAt)
  }

  isWriting(table: string, id: string, since: number): boolean {
    return isWriting(this.faults.uploads.getSnapshot(), table, id, since)
  }

  async refreshOutbox(): Promise<void> {
    const entries = await this.client.outbox.list()
    if (JSON.stringify(entries) !== JSON.stringify(this.outbox.getSnapshot())) this.outbox.set(entries)
  }

  #written(write: Write): Write {
    void write.local.then(() => this.refreshOutbox())
    return write
  }

  #follow(): void {
    const { live, upToDate, state } = this.status
    // The client goes on trying by itself.
    if (this.access.getSnapshot() === 'failed' && state !== 'unenrolled') this.access.set('ready')
    const isConnected = (live === 'sse' || live === 'websocket') && upToDate
    if (live !== 'sse' && live !== 'websocket') this.connectedSince.set(null)
    else if (isConnected && this.connectedSince.getSnapshot() === null) this.connectedSince.set(Date.now())
    void this.refreshOutbox()
  }

  #signedOut(code: string, message: string): void {
    this.endedAt.set(Date.now())
    if (code !== 'DEVICE_REVOKED') return void this.enter()
    this.problem.set(message)
    this.access.set('revoked')
  }

  #fail(problem: string): void {
    this.problem.set(problem)
    this.access.set('failed')
  }
}
