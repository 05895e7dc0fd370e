import type { Session } from './types'
import { Store } from './store'

const TIMEOUT_MS = 15_000

/** `null`: no session, show how to get one. `undefined`: not known yet. */
export const session = new Store<Session | null | undefined>(undefined)

/** An answer that is not a success, or no answer. The codes of this page begin with `LOCAL_`. */
export class ApiError extends Error {
  readonly code: string
  readonly status: number

  constructor(code: string, message: string, status: number) {
    super(message)
    this.name = 'ApiError'
    this.code = code
    this.status = status
  }
}

export type Options = {
  method?: 'GET' | 'POST' | 'DELETE'
  body?: unknown
  signal?: AbortSignal
  timeoutMs?: number
}

export type QueryParams = Record<string, string | number | boolean | null | undefined>

/** Path below /admin/api with the parameters that have a value. Parts of the path are encoded. */
export function url(parts: string[], params: QueryParams = {}): string {
  const query = new URLSearchParams()
  for (const [name, value] of Object.entries(params)) {
    if (value !== null && value !== undefined && value !== '' && value !== false) query.set(name, String(value))
  }
  const text = query.toString()
  return `/admin/api/${parts.map(encodeURIComponent).join('/')}${text ? `?${text}` : ''}`
}

/** Sends a request. Always settles: by the answer, by an error or by the timeout. */
export async function request<T>(path: string, options: Options = {}): Promise<T> {
  const { method = 'GET', body, signal, timeoutMs = TIMEOUT_MS } = options
  const headers: Record<string, string> = { Accept: 'application/json' }
  if (body !== undefined) headers['Content-Type'] = 'application/json'
  if (method !== 'GET' && session.value?.csrf) headers['X-CSRF-Token'] = session.value.csrf
  const timeout = AbortSignal.timeout(timeoutMs)
  let response: Response
  let text: string
  try {
    response = await fetch(path, {
      method,
      headers,
      credentials: 'same-origin',
      cache: 'no-store',
      redirect: 'error',
      signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    })
    text = await response.text()
  } catch (error) {
    if (signal?.aborted) throw new ApiError('LOCAL_ABORTED', 'The request was cancelled', 0)
    if (timeout.aborted) {
      throw new ApiError('LOCAL_TIMEOUT', `The engine did not answer within ${timeoutMs / 1000} s`, 0)
    }
    throw new ApiError('LOCAL_UNREACHABLE', `The engine does not answer (${String(error)})`, 0)
  }
  if (response.status === 401) session.set(null)
  if (!response.ok) throw failure(response, text)
  if (response.status === 204 || text === '') return undefined as T
  try {
    return JSON.parse(text) as T
  } catch {
    throw new ApiError('LOCAL_NOT_JSON', `The answer to ${path} is not JSON`, response.status)
  }
}

function failure(response: Response, text: string): ApiError {
  try {
    const { error } = JSON.parse(text) as { error: { code: string; message: string } }
    return new ApiError(String(error.code), String(error.message), response.status)
  } catch {
    const { status, statusText } = response
    return new ApiError('LOCAL_STATUS', `The engine answered ${status} ${statusText}`, status)
  }
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
