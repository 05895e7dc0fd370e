import type { Clock } from '../clock.js'
import { count, isObject } from '../json.js'
import type { Effect } from '../machine/effect.js'
import type { Failure } from '../machine/state.js'
import { wireItem } from '../outbox/item.js'
import type { Session } from '../session/session.js'
import { storeBatch, storeResults } from '../sync/steps.js'
import { readBatch, readEnrolled, readResults } from './answers.js'
import { backoff } from './backoff.js'
import { requestToken, type CredentialsCallback } from './credentials.js'
import { deviceHeaders, type Answer, type Credentials, type Http, type Request } from './http.js'
import { openLive, type LiveMode, type Transport } from './live.js'

export type RunnerOptions = {
  readonly http: Http
  readonly clock: Clock
  readonly live: LiveMode
  readonly presence: boolean
  /** Whether responses come in parts; without it no event of a stream would arrive before its end. */
  readonly streams: boolean
  readonly WebSocket: typeof WebSocket | undefined
  readonly credentials: CredentialsCallback | undefined
  readonly device: { readonly name: string; readonly type: string }
}

/** Used until the server's settings are known. */
const POLL_MS = 300_000

/** More rows make fewer requests of a snapshot, and longer turns of the page; the server names its own limit. */
const BATCH_ROWS = 500

/** A transport that has failed this often without an event is exchanged for the other one. */
const TRANSPORT_FAILURES_MAX = 2

type Lane = (Effect & { type: 'wait' })['lane']

/** Carries out what the machine decides. Nothing here decides what to do next. */
export class Runner {
  transport: Transport | null = null
  /** When a paused request is repeated, by its lane. */
  readonly retryAt: Map<Lane, number> = new Map()
  readonly #options: RunnerOptions
  readonly #session: Session
  readonly #cancels = new Map<string, () => void>()
  #request = new AbortController()
  #close = () => {}
  #pollMs = POLL_MS
  #batchRows: number | null = null
  #hasSettings = false
  #next: Transport
  readonly #mayChange: boolean
  #misses = 0

  constructor(session: Session, options: RunnerOptions) {
    this.#session = session
    this.#options = options
    const { live, streams, WebSocket } = options
    this.#mayChange = live === 'auto' && streams && WebSocket !== undefined
    this.#next = live === 'websocket' || (live === 'auto' && !streams) ? 'websocket' : 'sse'
  }

  run(effect: Exclude<Effect, { type: 'notify' }>): void {
    switch (effect.type) {
      case 'fetch':
        return void this.#fetch(effect)
      case 'upload':
        return void this.#upload(effect)
      case 'acknowledge':
        return void this.#acknowledge(effect)
      case 'resolve':
        return void this.#resolve(effect)
      case 'enroll':
        return void this.#enroll(effect)
      case 'credentials':
        return void this.#credentials(effect)
      case 'wait':
        return this.#wait(effect)
      case 'abort':
        return this.#abort()
      case 'openLive':
        return this.#openLive(effect.lastEventId)
      case 'closeLive':
        return this.#closeLive()
    }
  }

  /** Without a stream, the device syncs at the interval that the server names. */
  poll(): void {
    const { leads, device, live } = this.#session.state
    const isWanted = leads && device.token !== null && live.status !== 'open' && this.#options.live !== 'off'
    if (!isWanted) return this.#cancel('poll')
    if (this.#cancels.has('poll')) return
    this.#schedule('poll', this.#pollMs, () => void this.#session.dispatch({ type: 'sync', by: 'timer' }))
  }

  stop(): void {
    this.#abort()
    this.#closeLive()
    for (const name of [...this.#cancels.keys()]) this.#cancel(name)
  }

  /** Ends the request in flight, and none that follows. */
  #abort(): void {
    this.#request.abort()
    this.#request = new AbortController()
  }

  async #fetch({ ticket, cursor }: Effect & { type: 'fetch' }): Promise<void> {
    const limit = this.#batchRows === null ? '' : `limit=${this.#batchRows}&`
    const from = cursor === null ? '' : `cursor=${encodeURIComponent(cursor)}`
    const answer = await this.#send({ method: 'GET', path: `/api/sync/incoming?${limit}${from}` })
    const batch = answer.ok ? readBatch(answer.body) : null
    if (batch) {
      void this.#readSettings()
      await storeBatch(this.#session, ticket, cursor, batch, this.#options.clock.now())
    } else this.#fail(ticket, answer, 'a batch')
  }

  async #upload({ ticket, items, ackedSeq, pending }: Effect & { type: 'upload' }): Promise<void> {
    const body = { items: items.map(wireItem), acked_seq: ackedSeq, pending_count: pending }
    const answer = await this.#send({ method: 'POST', path: '/api/sync/outgoing', body })
    const results = answer.ok ? readResults(answer.body) : null
    if (results) await storeResults(this.#session, ticket, results)
    else this.#fail(ticket, answer, 'the result of an upload')
  }

  async #acknowledge({ ticket, cursor }: Effect & { type: 'acknowledge' }): Promise<void> {
    const answer = await this.#send({ method: 'POST', path: '/api/sync/ack', body: { cursor } })
    if (answer.ok) await this.#session.dispatch({ type: 'acknowledged', ticket })
    else this.#fail(ticket, answer, '')
  }

  async #resolve({ ticket, conflict }: Effect & { type: 'resolve' }): Promise<void> {
    const path = `/api/conflicts/${encodeURIComponent(conflict)}/resolve`
    const answer = await this.#send({ method: 'POST', path, body: { resolution: 'server' } })
    if (answer.ok) await this.#session.dispatch({ type: 'resolved', ticket })
    else this.#fail(ticket, answer, '')
  }

  async #enroll({ ticket, enrollment, deviceId }: Effect & { type: 'enroll' }): Promise<void> {
    const { name, type } = this.#options.device
    const { signal } = this.#request
    const answer = await this.#options.http.send(
      enrollment.by === 'code'
        ? {
            method: 'POST',
            path: '/api/enrollment/complete',
            signal,
            body: { token: enrollment.token, device_id: deviceId, device_name: name },
          }
        : {
            method: 'POST',
            path: '/api/devices',
            signal,
            headers: { authorization: `Bearer ${enrollment.token}` },
            body: { name, type, device_id: deviceId },
          },
    )
    const enrolled = answer.ok ? readEnrolled(answer.body) : null
    if (enrolled) {
      this.#hasSettings = false
      await this.#session.dispatch({ type: 'enrolled', ticket, ...enrolled })
    } else this.#fail(ticket, answer, 'an enrolled device')
  }

  async #credentials({ ticket, reason }: Effect & { type: 'credentials' }): Promise<void> {
    const { credentials, clock } = this.#options
    const answer = await requestToken(credentials, reason, clock, this.#request.signal)
    if (answer.ok)
      await this.#session.dispatch({ type: 'credentials', ticket, token: answer.token, freshId: clock.uuid() })
    else this.#failed(ticket, { kind: 'lost', message: answer.message })
  }

  #wait({ lane, failures, least }: Effect & { type: 'wait' }): void {
    const { clock } = this.#options
    // A delay that the server names for its return already differs between clients.
    const ms = backoff(failures, least, failures === 0 ? 0 : clock.random())
    this.retryAt.set(lane, clock.now() + ms)
    this.#schedule(lane, ms, () => {
      this.retryAt.delete(lane)
      void this.#session.dispatch({ type: 'retry', lane })
    })
  }

  #openLive(lastEventId: string | null): void {
    this.#closeLive()
    const { http, clock, presence, WebSocket } = this.#options
    const credentials = this.#deviceCredentials()
    if (!credentials) return
    const transport = this.#next
    const handler = {
      opened: () => {
        this.#misses = 0
        this.transport = transport
        void this.#session.dispatch({ type: 'liveOpened' })
      },
      steady: () => void this.#session.dispatch({ type: 'liveSteady' }),
      event: (name: string, id: string | null, data: Parameters<Parameters<typeof openLive>[2]['event']>[2]) =>
        void this.#session.dispatch({ type: 'liveEvent', name, id, data }),
      failed: (failure: Failure) => {
        this.transport = null
        this.#close = () => {}
        this.#misses += 1
        if (this.#mayChange && this.#misses % TRANSPORT_FAILURES_MAX === 0) {
          this.#next = transport === 'sse' ? 'websocket' : 'sse'
        }
        void this.#session.dispatch({ type: 'liveFailed', failure })
      },
    }
    this.#close = openLive(transport, { http, clock, credentials, lastEventId, presence, WebSocket }, handler)
  }

  #closeLive(): void {
    this.#close()
    this.#close = () => {}
    this.transport = null
  }

  /** The server's limits and intervals, once; without an answer the defaults hold. */
  async #readSettings(): Promise<void> {
    if (this.#hasSettings) return
    this.#hasSettings = true
    const answer = await this.#send({ method: 'GET', path: '/api/app-instructions' })
    if (!answer.ok || !isObject(answer.body)) return void (this.#hasSettings = false)
    const { limits, sync_config: sync } = answer.body
    const rows = isObject(limits) ? count(limits['batch_size_max']) : null
    if (rows !== null && rows > 0) this.#batchRows = Math.min(rows, BATCH_ROWS)
    const seconds = isObject(sync) ? count(sync['sync_interval_seconds']) : null
    if (seconds !== null && seconds > 0) this.#pollMs = seconds * 1000
  }

  async #send(request: Request): Promise<Answer> {
    const credentials = this.#deviceCredentials()
    if (!credentials) return { ok: false, failure: { kind: 'lost', message: 'this device is not enrolled' } }
    return this.#options.http.send({ ...request, headers: deviceHeaders(credentials), signal: this.#request.signal })
  }

  #deviceCredentials(): Credentials | null {
    const { deviceId, token } = this.#session.state.device
    return deviceId !== null && token !== null ? { deviceId, token } : null
  }

  #fail(ticket: number, answer: Answer, expected: string): void {
    const message = `the response is not ${expected}: a proxy or a captive portal may have answered`
    this.#failed(ticket, answer.ok ? { kind: 'lost', message } : answer.failure)
  }

  #failed(ticket: number, failure: Failure): void {
    void this.#session.dispatch({ type: 'failed', ticket, failure, freshId: this.#options.clock.uuid() })
  }

  #schedule(name: string, ms: number, run: () => void): void {
    this.#cancel(name)
    const cancel = this.#options.clock.schedule(() => {
      this.#cancels.delete(name)
      run()
    }, ms)
    this.#cancels.set(name, cancel)
  }

  #cancel(name: string): void {
    this.#cancels.get(name)?.()
    this.#cancels.delete(name)
  }
}
