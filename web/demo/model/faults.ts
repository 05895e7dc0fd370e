import { Value } from './value'

export type UploadItem = { readonly seq: number; readonly table: string; readonly op: string; readonly id: string }

/** One request with changes of a device, as it went through the seam. */
export type Upload = {
  readonly startedAt: number
  /** When its answer came here, or it failed; null: it is on its way. */
  readonly at: number | null
  readonly items: readonly UploadItem[]
  /** What the engine answered for each item; null: nothing, or an error. */
  readonly statuses: readonly string[] | null
  /** The answer was dropped on its way to the device. */
  readonly isLost: boolean
}

export type FaultState = {
  readonly offline: boolean
  readonly loseNext: boolean
  readonly expireNext: boolean
}

const UPLOADS_MAX = 40

/**
 * The seam between one client and the network: `fetch` and `WebSocket` as the client receives them. Behind it is the
 * real engine, before it the real client.
 */
export class Faults {
  readonly state: Value<FaultState> = new Value<FaultState>({ offline: false, loseNext: false, expireNext: false })
  readonly uploads: Value<readonly Upload[]> = new Value<readonly Upload[]>([])
  /** As the client has sent it. */
  readonly deviceId: Value<string | null> = new Value<string | null>(null)
  readonly #open = new Set<AbortController>()
  readonly #sockets = new Set<{ close(): void }>()
  readonly #fetch: typeof fetch
  readonly #now: () => number

  constructor(fetcher: typeof fetch = (input, init) => fetch(input, init), now: () => number = () => Date.now()) {
    this.#fetch = fetcher
    this.#now = now
  }

  setOffline(offline: boolean): void {
    this.state.update((state) => ({ ...state, offline }))
    if (!offline) return
    for (const control of this.#open) control.abort(offlineError())
    for (const socket of this.#sockets) socket.close()
    this.#open.clear()
    this.#sockets.clear()
  }

  setLoseNext(loseNext: boolean): void {
    this.state.update((state) => ({ ...state, loseNext }))
  }

  expireToken(): void {
    this.state.update((state) => ({ ...state, expireNext: true }))
  }

  readonly fetch: typeof fetch = async (input, init = {}) => {
    if (this.state.getSnapshot().offline) throw offlineError()
    const control = new AbortController()
    const abort = () => {
      this.#open.delete(control)
      control.abort(init.signal?.reason)
    }
    if (init.signal?.aborted) abort()
    init.signal?.addEventListener('abort', abort, { once: true })
    this.#open.add(control)
    const headers = this.#headers(init.headers)
    const isUpload = init.method === 'POST' && pathOf(input) === '/api/sync/outgoing'
    const upload = isUpload ? this.#began(init.body) : null
    try {
      const response = await this.#fetch(input, { ...init, headers, signal: control.signal })
      if (upload) await this.#answered(upload, response)
      return response
    } catch (error) {
      this.#open.delete(control)
      if (upload) this.#ended(upload, { isLost: true })
      throw error
    }
  }

  /** A class for the client, whose sockets close when the device goes offline; none where the platform has none. */
  socketClass(): typeof WebSocket | undefined {
    const Socket = globalThis.WebSocket as typeof WebSocket | undefined
    if (!Socket) return undefined
    const register = (socket: WebSocket) => {
      if (this.state.getSnapshot().offline) return socket.close()
      this.#sockets.add(socket)
      socket.addEventListener('close', () => this.#sockets.delete(socket))
    }
    return class extends Socket {
      constructor(url: string | URL, protocols?: string | string[]) {
        super(url, protocols)
        register(this)
      }
    }
  }

  #headers(from: HeadersInit | undefined): Headers {
    const headers = new Headers(from)
    const device = headers.get('x-device-id')
    if (device === null) return headers
    this.deviceId.set(device)
    if (this.state.getSnapshot().expireNext) {
      this.state.update((state) => ({ ...state, expireNext: false }))
      headers.set('authorization', 'Bearer expired')
    }
    return headers
  }

  #began(body: BodyInit | null | undefined): Upload {
    const upload = { startedAt: this.#now(), at: null, items: itemsOf(body), statuses: null, isLost: false }
    this.uploads.update((uploads) => [...uploads, upload].slice(-UPLOADS_MAX))
    return upload
  }

  /** Only once: dropping an answer that was recorded changes nothing. */
  #ended(upload: Upload, part: Partial<Upload>): void {
    this.uploads.update((uploads) => {
      const place = uploads.findIndex(({ startedAt, items, at }) => {
        return at === null && startedAt === upload.startedAt && items === upload.items
      })
      return place < 0 ? uploads : uploads.with(place, { ...upload, ...part, at: this.#now() })
    })
  }

  /** Records what the engine answered, and drops the answer if that was switched on. */
  async #answered(upload: Upload, response: Response): Promise<void> {
    const { loseNext: isLost } = this.state.getSnapshot()
    const answer = response.ok ? ((await response.clone().json()) as { results?: { status: string }[] }) : null
    const statuses = answer?.results?.map(({ status }) => status) ?? null
    this.#ended(upload, { statuses, isLost })
    if (!isLost) return
    this.setLoseNext(false)
    throw new TypeError('the answer was lost')
  }
}

/** Whether a change of the row that was committed at this time came by one of these uploads. */
export function wrote(uploads: readonly Upload[], table: string, id: string, committedAt: number): boolean {
  return uploads.some(({ startedAt, at, items, statuses }) => {
    if (committedAt < startedAt || (at !== null && committedAt > at)) return false
    return items.some((item, place) => {
      // Without an answer it may have been applied.
      const status = statuses?.[place] ?? 'applied'
      return item.table === table && item.id === id && status !== 'conflict' && status !== 'rejected'
    })
  })
}

/** Whether an upload of the row ended after this time: until then the row shows what was written here. */
export function isWriting(uploads: readonly Upload[], table: string, id: string, since: number): boolean {
  return uploads.some(({ at, items }) => {
    return (at === null || at >= since) && items.some((item) => item.table === table && item.id === id)
  })
}

export type Repeat = {
  /** Numbers of the items whose answer was lost and that were sent again. */
  readonly seqs: readonly number[]
  readonly items: readonly UploadItem[]
  readonly first: readonly string[]
  readonly second: readonly string[]
  readonly at: number
}

/** The last upload whose answer was lost, with the answer to the same items when they were sent again. */
export function lastRepeat(uploads: readonly Upload[]): Repeat | null {
  const lost = uploads.findLastIndex(({ isLost, statuses }) => isLost && statuses !== null)
  const first = uploads[lost]
  if (!first?.statuses || first.items.length === 0) return null
  for (const next of uploads.slice(lost + 1)) {
    if (next.isLost || !next.statuses || next.at === null) continue
    const places = first.items.map(({ seq }) => next.items.findIndex((item) => item.seq === seq))
    if (places.some((place) => place < 0)) continue
    const second = places.map((place) => next.statuses?.[place] ?? 'none')
    return { seqs: first.items.map(({ seq }) => seq), items: first.items, first: first.statuses, second, at: next.at }
  }
  return null
}

function itemsOf(body: BodyInit | null | undefined): UploadItem[] {
  if (typeof body !== 'string') return []
  const { items = [] } = JSON.parse(body) as { items?: { seq: number; table: string; op?: string; id: string }[] }
  return items.map(({ seq, table, op = 'create', id }) => ({ seq, table, op, id }))
}

function pathOf(input: RequestInfo | URL): string {
  return new URL(input instanceof Request ? input.url : String(input)).pathname
}

function offlineError(): TypeError {
  return new TypeError('the device is offline')
}
