import type { Rows } from './counters'

export type Setup = {
  readonly engine: string
  readonly tenant: string
  readonly password: string
  readonly users: Readonly<Record<'bob' | 'joe' | 'jane' | 'sally', string>>
  readonly list: { readonly id: string; readonly name: string }
  /** Null: the engine has no admin listener. */
  readonly console: string | null
  readonly features: { readonly sql: boolean; readonly kill: boolean; readonly redis: boolean }
}

export type SqlResult = {
  readonly command: string
  readonly columns: readonly string[]
  readonly rows: readonly (readonly unknown[])[]
  readonly truncated: boolean
  readonly ms: number
}

/** A refusal of a server, with its reason. */
export class Refusal extends Error {
  readonly code: string

  constructor(code: string, message: string) {
    super(message)
    this.code = code
  }
}

const TIMEOUT_MS = 15_000

/** Requests to the server of this page, which stays up when the engine is killed. */
export const demo = {
  setup: async (): Promise<Setup> => {
    const setup = await call<Omit<Setup, 'list'> & { list: Setup['list'] | null }>('GET', '/demo/api/setup')
    const { list } = setup
    if (list === null) throw new Error('The configuration has groups or routes of its own, so the demo has no tables.')
    return { ...setup, list }
  },
  sql: (sql: string) => call<SqlResult>('POST', '/demo/api/sql', { sql }),
  kill: () => call<{ pid: number }>('POST', '/demo/api/engine/kill', {}),
  restartRedis: () => call<{ ms: number }>('POST', '/demo/api/redis/restart', {}),
  consoleLink: () => call<{ url: string }>('POST', '/demo/api/console-link', {}),
  truth: (user: string) => call<Rows & { now: number }>('GET', `/demo/api/truth?user=${encodeURIComponent(user)}`),
}

/** Bob's login, which his browser and his acts as an admin share. */
export class Session {
  readonly #setup: Setup
  #token: Promise<string> | null = null

  constructor(setup: Setup) {
    this.#setup = setup
  }

  token(fetcher: typeof fetch = fetch): Promise<string> {
    this.#token ??= this.#login(fetcher)
    return this.#token
  }

  /** The token was refused; the next one is of another login. */
  end(): void {
    this.#token = null
  }

  /** The address in the QR code that Joe would scan. */
  async enrollment(userId: string): Promise<string> {
    const created = await this.#call<{ qr_code_data: { enrollment_url: string } }>('POST', '/api/enrollment/create', {
      user_id: userId,
      // The login may be older than 5 minutes.
      current: this.#setup.password,
    })
    return created.qr_code_data.enrollment_url
  }

  async revoke(deviceId: string): Promise<void> {
    await this.#call('DELETE', `/api/devices/${encodeURIComponent(deviceId)}`)
  }

  async #login(fetcher: typeof fetch): Promise<string> {
    const { engine, tenant, password } = this.#setup
    try {
      const body = { username: 'bob', password, tenant }
      return (await call<{ token: string }>('POST', `${engine}/api/auth/login`, body, {}, fetcher)).token
    } catch (error) {
      this.end()
      throw error
    }
  }

  async #call<T>(method: string, path: string, body?: unknown): Promise<T> {
    const send = async () => {
      const authorization = `Bearer ${await this.token()}`
      return call<T>(method, this.#setup.engine + path, body, { authorization })
    }
    try {
      return await send()
    } catch (error) {
      if (!(error instanceof Refusal) || error.code !== 'HTTP_401') throw error
      this.end()
      return send()
    }
  }
}

async function call<T>(
  method: string,
  url: string,
  body?: unknown,
  headers: Record<string, string> = {},
  fetcher: typeof fetch = fetch,
): Promise<T> {
  const response = await fetcher(new URL(url, location.href).href, {
    method,
    headers: { ...headers, ...(body !== undefined && { 'content-type': 'application/json' }) },
    signal: AbortSignal.timeout(TIMEOUT_MS),
    cache: 'no-store',
    ...(body !== undefined && { body: JSON.stringify(body) }),
  })
  if (response.status === 204) return undefined as T
  const answer: unknown = await response.json().catch(() => null)
  if (response.ok) return answer as T
  const error = (answer as { error?: { code?: string; message?: string; sqlstate?: string } } | null)?.error
  const code = response.status === 401 ? 'HTTP_401' : (error?.sqlstate ?? error?.code ?? `HTTP_${response.status}`)
  throw new Refusal(code, error?.message ?? `the server answered ${response.status}`)
}
