import { Signal, type Unsubscribe } from '../emitter.js'
import type { ClientOptions, Tables } from '../types.js'

export type Environment = NonNullable<ClientOptions<Tables>['environment']>

/** Faults that the panel makes in this tab, each of which the client must survive. */
export type Fault =
  /** No request gets an answer, and open streams break, until it is switched off. */
  | 'offline'
  /** The server receives the next upload, and its answer is lost. */
  | 'lost answer'
  /** The next request is answered as if the server did not know the token. */
  | 'expired token'
  /** The next request for a batch is answered as if the cursor was too old. */
  | 'reset'

/** A request as the log shows it: without its query, which may have a ticket. */
export type Sent = { readonly method: string; readonly path: string; readonly answer: string }

const STREAM = /^\/(sse|ws)\b/

/** Stands between a client and the platform. */
export class Faults {
  readonly environment: Environment
  readonly #active = new Set<Fault>()
  readonly #signal = new Signal(console.error)
  readonly #sockets = new Set<WebSocket>()
  readonly #locks: LockManager | undefined
  /** Of the lock that decides which tab leads, once the client has asked for it. */
  #lock: string | null = null
  #network = new AbortController()
  readonly #sent: (request: Sent) => void

  constructor(platform: Environment, sent: (request: Sent) => void) {
    this.#sent = sent
    const send = platform.fetch ?? ((input, init) => fetch(input, init))
    const Socket = platform.WebSocket ?? globalThis.WebSocket
    this.#locks = platform.locks ?? globalThis.navigator?.locks
    const locks = this.#locks && this.#watchLocks(this.#locks)
    this.environment = {
      ...platform,
      fetch: (input, init) => this.#send(send, input, init ?? {}),
      ...(Socket && { WebSocket: this.#socketClass(Socket) }),
      ...(locks && { locks }),
    }
  }

  readonly subscribe = (listener: () => void): Unsubscribe => this.#signal.subscribe(listener)

  has(fault: Fault): boolean {
    return this.#active.has(fault)
  }

  set(fault: Fault, isActive: boolean): void {
    if (isActive) this.#active.add(fault)
    else this.#active.delete(fault)
    if (fault === 'offline' && isActive) {
      this.#network.abort()
      this.#network = new AbortController()
      for (const socket of this.#sockets) socket.close()
    }
    this.#signal.notify()
  }

  /** Takes the lead from the tab that has it, as if it had crashed; false if no lock decides. */
  endLeader(): boolean {
    if (!this.#locks || this.#lock === null) return false
    // Given back at once: the next tab that waits for it leads.
    this.#locks.request(this.#lock, { steal: true }, () => {}).catch(() => {})
    return true
  }

  async #send(send: typeof fetch, input: Parameters<typeof fetch>[0], init: RequestInit): Promise<Response> {
    const path = new URL(input instanceof Request ? input.url : String(input)).pathname
    const method = init.method ?? 'GET'
    const { signal } = this.#network
    const report = (answer: string) => this.#sent({ method, path, answer })
    if (this.has('offline')) {
      report('offline')
      throw new TypeError('offline, by the devtools')
    }
    if (path.startsWith('/api/sync/') || STREAM.test(path)) {
      if (this.#takes('expired token')) {
        report('401, made by the devtools')
        return refusal(401, 'UNAUTHORIZED', 'the devtools refused the token')
      }
      if (path === '/api/sync/incoming' && this.#takes('reset')) {
        report('400, made by the devtools')
        return refusal(400, 'INVALID_CURSOR', 'the devtools refused the cursor')
      }
    }
    const isLost = path === '/api/sync/outgoing' && this.#takes('lost answer')
    try {
      const given = init.signal
      const response = await send(input, { ...init, signal: given ? AbortSignal.any([given, signal]) : signal })
      report(isLost ? `${response.status}, lost` : String(response.status))
      if (!isLost) return response
    } catch (error) {
      report('no answer')
      throw error
    }
    throw new TypeError('the answer was lost, by the devtools')
  }

  /** Whether a fault that happens once is due; it is over then. */
  #takes(fault: Fault): boolean {
    if (!this.has(fault)) return false
    this.set(fault, false)
    return true
  }

  #socketClass(Socket: typeof WebSocket): typeof WebSocket {
    const faults = this
    return class extends Socket {
      constructor(url: string | URL, protocols?: string | string[]) {
        if (faults.has('offline')) throw new TypeError('offline, by the devtools')
        super(url, protocols)
        faults.#sockets.add(this)
        this.addEventListener('close', () => faults.#sockets.delete(this))
      }
    }
  }

  #watchLocks(locks: LockManager): LockManager {
    return {
      query: () => locks.query(),
      request: (...values: [string, ...unknown[]]) => {
        this.#lock = values[0]
        return (locks.request as (...all: unknown[]) => Promise<never>).apply(locks, values)
      },
    }
  }
}

function refusal(status: number, code: string, message: string): Response {
  return new Response(JSON.stringify({ error: { code, message } }), {
    status,
    headers: { 'content-type': 'application/json' },
  })
}
