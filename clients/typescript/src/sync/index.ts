import type { Clock } from '../clock.js'
import type { CredentialsCallback } from '../effects/credentials.js'
import { deviceHeaders, Http } from '../effects/http.js'
import type { LiveMode } from '../effects/live.js'
import { Runner } from '../effects/runner.js'
import { isObject, text, type JsonObject } from '../json.js'
import type { Enrollment, State } from '../machine/state.js'
import { transition } from '../machine/transition.js'
import { failed } from '../outcome.js'
import type { Session } from '../session/session.js'
import { codeOf } from '../status.js'
import type { StoreError } from '../store/store.js'
import type { ClientOptions, Login, Outcome, Tables } from '../types.js'

/** How long a login waits for the server to add the device. */
const ENROLL_MS = 60_000

/** A list of who is present is requested within this time, since all clients are notified at once. */
const PRESENCE_MS = 5000

export type SyncHost = {
  readonly session: Session
  readonly clock: Clock
  readonly options: ClientOptions<Tables>
  readonly live: LiveMode
  /** Resolves when a condition of the state holds, or after the time. */
  until(holds: () => boolean, ms: number): Promise<boolean>
  /** Who is present, as the server names them. */
  present(users: unknown, isComplete: boolean): void
}

/**
 * All that needs the server: the whole machine, requests, streams, enrollment. A client loads it once its storage is open, so
 * that a page shows its rows before.
 */
export class Sync {
  readonly runner: Runner
  readonly #http: Http
  readonly #host: SyncHost
  readonly #credentials: CredentialsCallback | undefined

  constructor(host: SyncHost) {
    const { session, clock, options, live } = host
    const { environment = {}, credentials } = options
    const isBrowser = typeof document !== 'undefined'
    this.#host = host
    session.transition = transition
    this.#credentials = credentials
    this.#http = new Http(options.url, clock, environment.fetch)
    this.runner = new Runner(session, {
      http: this.#http,
      clock,
      live,
      presence: options.presence ?? false,
      streams: environment.fetch !== undefined || (typeof Response !== 'undefined' && 'body' in Response.prototype),
      WebSocket: environment.WebSocket ?? globalThis.WebSocket,
      credentials,
      device:
        options.device ??
        (isBrowser ? { name: 'Browser', type: 'browser' } : { name: 'Posduif client', type: 'desktop' }),
    })
  }

  lead(): Promise<StoreError | null> {
    const { session, live } = this.#host
    return session.lead(live !== 'off' && live !== 'poll', this.#credentials !== undefined)
  }

  /** Whether nothing is in progress or due. */
  isIdle({ busy, up, down, auth, outbox, device }: State): boolean {
    const isRunning = (lane: { wanted: boolean; pause: string }) => lane.wanted && lane.pause === 'none'
    const { token, enrollment, decided } = device
    if (busy) return false
    if (token === null) return !(isRunning(auth) && (enrollment || this.#credentials))
    return !(isRunning(up) && outbox.length + decided.length > 0) && !isRunning(down)
  }

  async login({ username, email, password, code, tenant }: Login): Promise<Outcome> {
    const answer = await this.#http.send({
      method: 'POST',
      path: '/api/auth/login',
      body: { username, email, password, code, tenant },
    })
    if (!answer.ok) {
      const { failure } = answer
      const ms = failure.kind === 'later' ? failure.retryAfter : null
      const retryAt = ms === null ? null : this.#host.clock.now() + ms
      return { ok: false, code: codeOf(failure), message: failure.message, retryAt }
    }
    const token = isObject(answer.body) ? text(answer.body['token']) : null
    if (token === null) return { ok: false, code: 'LOCAL_NO_ANSWER', message: 'the response is not a login' }
    const outcome = await this.#enroll({ by: 'user', token })
    // The device has a token of its own; the session was needed to add it.
    void this.#http.send({ method: 'POST', path: '/api/auth/logout', headers: { authorization: `Bearer ${token}` } })
    return outcome
  }

  async enroll(url: string): Promise<Outcome> {
    const token = url.split('/api/enrollment/').at(-1)?.replace(/[?#/].*$/s, '')
    if (token) return this.#enroll({ by: 'code', token })
    return { ok: false, code: 'LOCAL_INVALID', message: 'the address of an enrollment ends with its token' }
  }

  async #enroll(enrollment: Enrollment): Promise<Outcome> {
    const { session, clock, until } = this.#host
    const before = session.state.device.token
    const error = await session.dispatch({ type: 'enroll', enrollment, freshId: clock.uuid() })
    if (error) return failed(error)
    await until(() => session.state.device.enrollment === null, ENROLL_MS)
    const { device, auth } = session.state
    if (device.enrollment === null && device.token !== null && device.token !== before) return { ok: true }
    if (device.refusal) return { ok: false, ...device.refusal }
    const message = auth.error?.message ?? 'the server has not answered yet; the client repeats the request'
    return { ok: false, code: 'LOCAL_NO_ANSWER', message }
  }

  presence(data: JsonObject): void {
    const { clock, present } = this.#host
    if (data['truncated'] === true) clock.schedule(() => void this.#readPresence(), PRESENCE_MS * clock.random())
    else present(data['users'], data['snapshot'] === true)
  }

  async #readPresence(): Promise<void> {
    const { session, present } = this.#host
    const { deviceId, token } = session.state.device
    if (deviceId === null || token === null) return
    const headers = deviceHeaders({ deviceId, token })
    const answer = await this.#http.send({ method: 'GET', path: '/api/presence', headers })
    if (answer.ok && isObject(answer.body)) present(answer.body['presence'], true)
  }
}
