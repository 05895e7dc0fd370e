import { execFile, spawn, type ChildProcess } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { promisify } from 'node:util'

const run = promisify(execFile)

const CONFIG = `
routes:
  - table: tasks
    to: [owner_id, assignee_id]
    event: task
    upload:
      owner: owner_id
      columns: [title, done, assignee_id]
sync:
  conflict_strategy: manual
limits:
  login_attempts_max: 1000
`

const TABLES = `
  CREATE TABLE tenant_demo.tasks (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    owner_id    uuid NOT NULL REFERENCES tenant_demo.users,
    assignee_id uuid REFERENCES tenant_demo.users,
    title       text NOT NULL CHECK (title <> ''),
    done        boolean NOT NULL DEFAULT false,
    version     bigint NOT NULL DEFAULT 1,
    deleted_at  timestamptz
  );
`

/** A complete system with demo users and tables of a test, in a folder of its own. */
export class Engine {
  readonly #process: ChildProcess
  readonly #folder: string
  readonly env: Record<string, string>
  readonly url: string

  private constructor(process: ChildProcess, folder: string, url: string, env: Record<string, string>) {
    this.#process = process
    this.#folder = folder
    this.url = url
    this.env = env
  }

  static async start(config = CONFIG, tables = TABLES): Promise<Engine> {
    const binary = process.env['POSDUIF_BIN']
    if (!binary)
      throw new Error('POSDUIF_BIN names no program: run scripts/client --browser, or set it to a built posduif')
    const folder = mkdtempSync(join(tmpdir(), 'posduif-client-'))
    const file = join(folder, 'config.yaml')
    writeFileSync(file, config)
    const child = spawn(binary, ['dev', '--config', file, '--port', '0', '--data', join(folder, 'data'), '--json'], {
      cwd: folder,
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    const log: string[] = []
    createInterface({ input: child.stderr! }).on('line', (line) => log.push(line))
    const ready = await new Promise<{ ready: string; env: string }>((resolve, reject) => {
      createInterface({ input: child.stdout! }).once('line', (line) => resolve(JSON.parse(line)))
      child.once('error', reject)
      child.once('exit', (code) => reject(new Error(`posduif dev ended with ${code}:\n${log.slice(-20).join('\n')}`)))
    })
    const lines = readFileSync(ready.env, 'utf8')
      .split('\n')
      .filter((line) => line.includes('='))
    const env = Object.fromEntries(
      lines.map((line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]),
    )
    const engine = new Engine(child, folder, ready.ready, env)
    try {
      await engine.sql(tables)
    } catch (error) {
      await engine.stop()
      throw error
    }
    return engine
  }

  async stop(): Promise<void> {
    const ended = new Promise((resolve) => this.#process.once('exit', resolve))
    this.#process.kill('SIGTERM')
    await ended
    rmSync(this.#folder, { recursive: true, force: true })
  }

  /** Rows as texts. */
  async sql(text: string): Promise<string[]> {
    const { stdout } = await run('psql', ['-qAtX', '-v', 'ON_ERROR_STOP=1', this.env['DATABASE_URL']!, '-c', text])
    return stdout.split('\n').filter((line) => line !== '')
  }

  /** Makes every device of the tenant take a snapshot. */
  async resync(): Promise<void> {
    await run(process.env['POSDUIF_BIN']!, ['tenant', 'resync', 'demo', '--yes'], {
      cwd: this.#folder,
      env: { ...process.env, ...this.env },
    })
  }

  async token(username: string): Promise<string> {
    const { token } = await this.#call('POST', '/api/auth/login', null, {
      username,
      password: 'posduif-demo',
      tenant: 'demo',
    })
    return token as string
  }

  /** Resolves the open conflicts of bob, or of the user with this token, on another page of theirs. */
  async resolveConflicts(user?: string): Promise<void> {
    const token = user ?? (await this.token('bob'))
    const { conflicts } = await this.#call('GET', '/api/conflicts', token)
    for (const { id } of conflicts as { id: string }[])
      await this.#call('POST', `/api/conflicts/${id}/resolve`, token, { resolution: 'server' })
  }

  /** The address in the QR code of an enrollment for a user. */
  async enrollment(username: string): Promise<string> {
    const admin = await this.token('bob')
    const [id] = await this.sql(`SELECT id FROM tenant_demo.users WHERE username = '${username}'`)
    const created = await this.#call('POST', '/api/enrollment/create', admin, { user_id: id })
    return (created['qr_code_data'] as { enrollment_url: string }).enrollment_url
  }

  /** Revokes all devices of a user. */
  async revoke(username: string): Promise<void> {
    const admin = await this.token('bob')
    const [id] = await this.sql(`SELECT id FROM tenant_demo.users WHERE username = '${username}'`)
    const { devices } = await this.#call('GET', `/api/devices?user_id=${id}&limit=1000`, admin)
    for (const { device_id: device } of devices as { device_id: string }[]) {
      await this.#call('DELETE', `/api/devices/${device}`, admin)
    }
  }

  async #call(method: string, path: string, token: string | null, body?: unknown): Promise<Record<string, unknown>> {
    const response = await fetch(this.url + path, {
      method,
      headers: { 'content-type': 'application/json', ...(token && { authorization: `Bearer ${token}` }) },
      ...(body !== undefined && { body: JSON.stringify(body) }),
    })
    if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${await response.text()}`)
    return response.status === 204 ? {} : ((await response.json()) as Record<string, unknown>)
  }
}
