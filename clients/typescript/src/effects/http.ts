import type { Clock } from '../clock.js'
import { count, isObject, text } from '../json.js'
import type { Failure } from '../machine/state.js'

export type Credentials = { readonly deviceId: string; readonly token: string }

export type Request = {
  readonly method: 'GET' | 'POST' | 'PUT'
  /** Path and query. */
  readonly path: string
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: unknown
  readonly signal?: AbortSignal
}

export type Answer = { readonly ok: true; readonly body: unknown } | { readonly ok: false; readonly failure: Failure }

/** Timeout of one response. */
const TIMEOUT_MS = 30_000

/** The server ends a batch long before; more is not a response of this server. */
const BODY_BYTES_MAX = 64 * 1024 * 1024

export class Http {
  readonly base: string
  readonly #fetch: typeof fetch
  readonly #clock: Clock

  constructor(url: string, clock: Clock, fetcher?: typeof fetch) {
    this.base = url.replace(/\/+$/, '')
    this.#clock = clock
    // The global is named late, so that tests and tools can replace it.
    this.#fetch = fetcher ?? ((input, init) => fetch(input, init))
  }

  /** Sends a request and classifies the response. Never rejects. */
  async send(request: Request): Promise<Answer> {
    const timeout = new AbortController()
    const cancel = this.#clock.schedule(() => timeout.abort(), TIMEOUT_MS)
    try {
      const response = await this.open(request, timeout)
      return await classify(response)
    } catch (error) {
      const isTimeout = timeout.signal.aborted && !request.signal?.aborted
      const reason = isTimeout ? `no response within ${TIMEOUT_MS / 1000} s` : reasonOf(error)
      return { ok: false, failure: { kind: 'lost', message: `${this.base} does not answer: ${reason}` } }
    } finally {
      cancel()
      // Nothing is left to abort; this removes the listener.
      timeout.abort()
    }
  }

  /** Sends a request and returns the response as it is. Rejects without one, and when `control` aborts. */
  async open({ method, path, headers, body, signal }: Request, control: AbortController): Promise<Response> {
    const abort = () => control.abort()
    if (signal?.aborted) abort()
    signal?.addEventListener('abort', abort)
    control.signal.addEventListener('abort', () => signal?.removeEventListener('abort', abort))
    return this.#fetch(this.base + path, {
      method,
      headers: {
        accept: 'application/json',
        ...(body !== undefined && { 'content-type': 'application/json' }),
        ...headers,
      },
      signal: control.signal,
      // A device has credentials of its own.
      credentials: 'omit',
      cache: 'no-store',
      ...(body !== undefined && { body: JSON.stringify(body) }),
    })
  }
}

export function deviceHeaders({ deviceId, token }: Credentials): Record<string, string> {
  return { 'x-device-id': deviceId, authorization: `Bearer ${token}` }
}

export async function classify(response: Response): Promise<Answer> {
  const body = parse(await readText(response))
  const { status } = response
  if (response.ok) return { ok: true, body }
  const error = isObject(body) && isObject(body['error']) ? body['error'] : {}
  const code = text(error['code']) ?? `HTTP_${status}`
  const message = text(error['message']) ?? `the server answered ${status}`
  if (status === 401) return { ok: false, failure: { kind: 'ended', code, message } }
  if (status === 429 || status === 408 || status >= 500) {
    const seconds = Number.parseFloat(response.headers.get('retry-after') ?? '')
    const retryAfter = seconds >= 0 ? seconds * 1000 : null
    return { ok: false, failure: { kind: 'later', code, message, retryAfter } }
  }
  // Redirects are followed; what is left has another form.
  if (status < 400) return { ok: false, failure: { kind: 'lost', message } }
  const details = isObject(error['details']) ? error['details'] : {}
  return { ok: false, failure: { kind: 'refused', status, code, message, expected: count(details['expected']) } }
}

async function readText(response: Response): Promise<string> {
  const reader = response.body?.getReader()
  // React Native has no streams.
  if (!reader) return response.text()
  const decoder = new TextDecoder()
  let read = ''
  let bytes = 0
  for (;;) {
    const { done, value } = await reader.read()
    if (done) return read + decoder.decode()
    bytes += value.byteLength
    if (bytes > BODY_BYTES_MAX) {
      await reader.cancel()
      throw new Error(`the response has more than ${BODY_BYTES_MAX} bytes`)
    }
    read += decoder.decode(value, { stream: true })
  }
}

/** JSON, or null: an intermediary such as a captive portal may have answered. */
export function parse(body: string): unknown {
  try {
    return JSON.parse(body)
  } catch {
    return null
  }
}

function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return 'the request failed'
  const { cause } = error
  return cause instanceof Error && cause.message ? cause.message : error.message
}
