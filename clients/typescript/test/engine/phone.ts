// A device of a story: a client over a storage that outlives it, behind a network that does what the story says.
import { createClient, StoreError, table, type Client, type Clock, type Entry, type Store, type Write } from '../../src/index.js'
import { memory } from '../../src/memory/index.js'
import { SPACES } from '../../src/store/store.js'
import type { User } from './stage.js'
import type { Fate, TableName } from './story.js'
import { fastClock } from './support.js'

export type Row = { readonly id: string; readonly title?: string; readonly content?: string; readonly version: number }

const tables = { tasks: table<Row & { readonly owner_id: string }>() }

/** Of a device without a stream: what failed is tried again when the story says so. */
const manualClock: Clock = {
  ...fastClock,
  schedule: (run, ms) => (ms <= 1000 || ms >= 30_000 ? fastClock.schedule(run, ms) : () => {}),
}

/** Small, so that batches end within what belongs together. */
const BATCH_ROWS = '8'

/** A change that the user made on a device. */
export type Deed = {
  key: string
  readonly table: TableName
  readonly op: 'create' | 'edit' | 'delete' | 'read'
  readonly id: string
  readonly text: string | null
  /** The text that the user saw. */
  seen: string | null
  /** The user has withdrawn it, or it was lost with a storage that went back. */
  isForgotten: boolean
}

/** A storage, and the process that uses it. */
class Disk {
  #store = memory()

  /** What a process sees of it; after `cut` that process is gone. */
  open(): { readonly store: Store; readonly cut: () => void } {
    const store = this.#store
    let isCut = false
    const check = () => {
      if (isCut) throw new StoreError('LOCAL_STORE_UNAVAILABLE', 'the process has ended')
    }
    return {
      cut: () => (isCut = true),
      store: {
        ...store,
        read: async (reads) => {
          check()
          return store.read(reads)
        },
        transaction: async (...values) => {
          check()
          return store.transaction(...values)
        },
      },
    }
  }

  async deviceId(): Promise<string | null> {
    const [[device] = []] = await this.#store.read([{ space: 'meta', keys: ['device'] }])
    return (device?.value as { deviceId: string } | undefined)?.deviceId ?? null
  }

  copy(): Promise<Entry[][]> {
    return this.#store.read(SPACES.map((space) => ({ space })))
  }

  async restore(spaces: readonly Entry[][]): Promise<void> {
    this.#store = memory()
    const ops = SPACES.flatMap((space, place) =>
      spaces[place]!.map(({ key, value }) => ({ op: 'put', space, key, value }) as const),
    )
    await this.#store.transaction(ops, [], 'strict')
  }
}

export class Phone {
  readonly user: User
  readonly deeds: Deed[] = []
  /** What contradicts the protocol. */
  readonly violations: string[] = []
  fates: Fate[] = []
  isOnline = true
  wasRestored = false
  restores = 0
  client: Client<typeof tables>
  readonly #url: string
  readonly isLive: boolean
  readonly #disk = new Disk()
  readonly #lingering: (() => Promise<unknown>)[] = []
  /** The first result of each item. */
  readonly #results = new Map<string, string>()
  #copy: Entry[][] | null = null
  #cut = () => {}
  #isDead = false

  constructor(url: string, user: User, isLive: boolean) {
    this.#url = url
    this.user = user
    this.isLive = isLive
    this.client = this.#open()
  }

  #open(): Client<typeof tables> {
    const { store, cut } = this.#disk.open()
    this.#cut = cut
    this.#isDead = false
    return createClient({
      url: this.#url,
      store,
      tables,
      live: this.isLive ? 'sse' : 'off',
      credentials: async () => ({ token: this.user.token }),
      environment: { clock: this.isLive ? fastClock : manualClock, fetch: (input, init) => this.#fetch(String(input), init ?? {}) },
    })
  }

  /** The process ends, in whatever it is doing, or after it was asked to. */
  die(): void {
    this.#isDead = true
    this.#cut()
    this.client.close()
  }

  reload(isCrash: boolean): void {
    if (isCrash) this.#cut()
    this.client.close()
    this.client = this.#open()
  }

  async sync(fates: readonly Fate[]): Promise<boolean> {
    this.fates = [...fates]
    const { ok } = await this.client.sync()
    this.fates = []
    if (this.#isDead) this.client = this.#open()
    return ok
  }

  deviceId(): Promise<string | null> {
    return this.#disk.deviceId()
  }

  async late(): Promise<void> {
    await this.#lingering.shift()?.()
  }

  async save(): Promise<void> {
    this.#copy = await this.#disk.copy()
  }

  async goBack(): Promise<void> {
    if (!this.#copy) return
    const waited = new Set((await this.client.outbox.list()).map(({ key }) => key))
    this.#cut()
    this.client.close()
    await this.#disk.restore(this.#copy)
    this.client = this.#open()
    this.wasRestored = true
    this.restores += 1
    const still = new Set((await this.client.outbox.list()).map(({ key }) => key))
    // What waited, or was refused, and is not in the copy is gone, as its user would expect.
    for (const deed of this.deeds) if (waited.has(deed.key) && !still.has(deed.key)) deed.isForgotten = true
  }

  async rows(name: TableName): Promise<readonly Row[]> {
    return name === 'tasks'
      ? this.client.tasks.query().get()
      : ((await this.client.messages.query().get()) as unknown as readonly Row[])
  }

  /** Records a change once it is durable; a refused one was never made. */
  async done(write: Write, deed: Omit<Deed, 'key' | 'id' | 'isForgotten'>): Promise<void> {
    if ((await write.local).ok) this.deeds.push({ ...deed, key: write.key, id: write.id, isForgotten: false })
  }

  /** Decides a conflict or a refusal, or withdraws a change that was not sent. */
  async decide(entryNumber: number, keepsMine: boolean): Promise<void> {
    const list = await this.client.outbox.list()
    const entry = list[entryNumber % Math.max(list.length, 1)]
    const deed = this.deeds.find(({ key }) => key === entry?.key)
    if (!entry || !deed) return
    const isOpen = entry.state === 'conflict' || entry.state === 'rejected'
    if (isOpen && keepsMine) {
      const seen = textOf((await this.rows(deed.table)).find(({ id }) => id === deed.id))
      const write = await this.client.outbox.retry(entry.key)
      if (!write || !(await write.local).ok) return
      deed.key = write.key
      deed.seen = seen
    } else if ((await this.client.outbox.discard(entry.key)).ok) {
      deed.isForgotten = true
      // The changes behind a withdrawn one are based on what it was based on.
      for (const other of this.deeds) if (!isOpen && other.id === deed.id && other.seen === deed.text) other.seen = deed.seen
    }
  }

  async #fetch(input: string, init: RequestInit): Promise<Response> {
    const url = new URL(input)
    const isSync = /^\/api\/(sync|devices|conflicts)/.test(url.pathname)
    if (this.#isDead || !this.isOnline) throw new TypeError('no network')
    if (!isSync) return fetch(url, init)
    if (url.pathname === '/api/sync/incoming') url.searchParams.set('limit', BATCH_ROWS)
    const send = () => this.#send(url, init)
    const fate = this.fates.shift() ?? 'pass'
    switch (fate) {
      case 'pass':
        return send()
      case 'twice':
        await send()
        return send()
      case 'linger':
        this.#lingering.push(() => this.#send(url, { ...init, signal: null }))
        return send()
      case 'lose answer':
        await send()
        throw new TypeError('the story lost the answer')
      case 'lose request':
        throw new TypeError('the story lost the request')
      case 'die before':
        this.die()
        throw new TypeError('the process has ended')
      case 'die after':
        await send()
        this.die()
        throw new TypeError('the process has ended')
      case 'busy':
        return new Response('{"error":{"code":"BUSY"}}', { status: 503, headers: { 'retry-after': '1' } })
      case 'too large': {
        const isUpload = url.pathname === '/api/sync/outgoing' && itemsOf(init).length > 1
        return isUpload ? new Response('{"error":{"code":"PAYLOAD_TOO_LARGE"}}', { status: 413 }) : send()
      }
    }
  }

  /** An upload must give each item its first result, however often it comes. */
  async #send(url: URL, init: RequestInit): Promise<Response> {
    const response = await fetch(url, init)
    const { status, headers } = response
    const text = await response.text()
    if (url.pathname === '/api/sync/outgoing' && (status === 200 || status === 409)) {
      const body = JSON.parse(text) as { results?: Record<string, unknown>[]; error?: { code: string } }
      if (status === 409 && !this.wasRestored)
        this.violations.push(`a device that was never restored got ${body.error?.code}`)
      for (const [place, item] of itemsOf(init).entries()) {
        const result = body.results?.[place]
        if (!result || result['status'] === 'retry') continue
        // They are about the row as of now.
        const outline = JSON.stringify({ ...result, server: null, overtaken: null })
        const first = this.#results.get(JSON.stringify(item)) ?? outline
        this.#results.set(JSON.stringify(item), first)
        if (first !== outline) this.violations.push(`${JSON.stringify(item)} was answered ${first}, and then ${outline}`)
      }
    }
    return new Response(status === 204 ? null : text, { status, headers: { 'retry-after': headers.get('retry-after') ?? '' } })
  }
}

function itemsOf({ body }: RequestInit): unknown[] {
  return typeof body === 'string' ? ((JSON.parse(body) as { items?: unknown[] }).items ?? []) : []
}

export function textOf(row: Partial<Row> | undefined): string | null {
  return row?.title ?? row?.content ?? null
}
