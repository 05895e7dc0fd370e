import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { posduif, Program, psql, type Environment } from './program'

/** The owner is a text, so that a row can name something that is no user. */
const TABLES = `
  CREATE TABLE tenant_demo.notes (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    owner_id   text NOT NULL,
    title      text NOT NULL,
    version    bigint NOT NULL DEFAULT 1,
    deleted_at timestamptz
  );
`

const CONFIG = `
routes:
  - table: notes
    to: [owner_id]
    event: note
`

/** Where a console is, and how to get a link that opens it. */
export type Listener = { readonly admin: string; link(): Promise<string> }

type Ready = { ready: string; admin: string; env: string; data: string }

/** A complete system with the demo tenant, in a folder of its own. */
export class Engine implements Listener {
  readonly #dev: Program<Ready>
  readonly #folder: string
  readonly #env: Environment
  readonly #others: Program<unknown>[] = []
  #suspended: number | null = null

  private constructor(dev: Program<Ready>, folder: string, env: Environment) {
    this.#dev = dev
    this.#folder = folder
    this.#env = env
  }

  static async start(options: { config?: string; tables?: string } = {}): Promise<Engine> {
    const { config = CONFIG, tables = TABLES } = options
    const folder = mkdtempSync(join(tmpdir(), 'posduif-console-'))
    const file = join(folder, 'config.yaml')
    writeFileSync(file, config)
    const env: Environment = {
      ...(process.env as Environment),
      POSDUIF__ADMIN__LISTEN: '127.0.0.1:0',
      POSDUIF__AUTH__JWT_SECRET: 'a secret of the tests of the console',
    }
    const args = ['dev', '--config', file, '--port', '0', '--data', join(folder, 'data')]
    const dev = await Program.start<Ready>(args, folder, env)
    const engine = new Engine(dev, folder, { ...env, ...variables(dev.ready.env) })
    if (tables !== '') await engine.sql(tables)
    return engine
  }

  get admin(): string {
    return this.#dev.ready.admin
  }

  get url(): string {
    return this.#dev.ready.ready
  }

  async link(): Promise<string> {
    return this.#linkTo(this.admin)
  }

  /** Another engine at the same servers, without `admin.actions`, with a slot and keys of its own. */
  async readOnly(): Promise<Listener> {
    const env = {
      ...this.#env,
      POSDUIF__SERVER__PORT: '0',
      POSDUIF__ADMIN__ACTIONS: 'false',
      POSDUIF__REDIS__PREFIX: 'read_only',
      POSDUIF__REPLICATION__SLOT: 'read_only',
    }
    const other = await Program.start<{ admin_url: string }>(['serve'], this.#folder, env)
    this.#others.push(other)
    const admin = other.ready.admin_url
    return { admin, link: () => this.#linkTo(admin) }
  }

  /** The process id of the engine, which `posduif dev` starts again after a kill. */
  async pid(): Promise<number> {
    const children = await this.#dev.children()
    const engine = children.find(({ command }) => command.includes(' serve --supervised'))
    if (!engine) throw new Error(`no child of posduif dev is an engine: ${JSON.stringify(children)}`)
    return engine.pid
  }

  /** Kills the engine. `posduif dev` starts it again once the result is called. */
  async kill(): Promise<() => void> {
    const pid = await this.pid()
    this.#dev.suspend()
    process.kill(pid, 'SIGKILL')
    return () => this.#dev.resume()
  }

  /** Stops Redis until the result is called, so that it neither answers nor closes connections. */
  suspendRedis(): () => void {
    const pid = Number(readFileSync(join(this.#dev.ready.data, 'redis/redis.pid'), 'utf8'))
    process.kill(pid, 'SIGSTOP')
    this.#suspended = pid
    return () => this.#resumeRedis()
  }

  /** Runs a command as the console prints it. */
  async type(line: string): Promise<string> {
    const [name, ...args] = line.split(' ')
    if (name !== 'posduif') throw new Error(`not a command of posduif: ${line}`)
    return posduif(args, this.#folder, this.#env)
  }

  /** Rows as texts. */
  async sql(text: string, timeoutMs?: number): Promise<string[]> {
    return psql(this.#env['DATABASE_URL']!, text, timeoutMs)
  }

  /** Stops everything, servers included. */
  async stop(): Promise<void> {
    this.#resumeRedis()
    this.#dev.resume()
    for (const other of this.#others) await other.stop()
    await this.#dev.stop()
    rmSync(this.#folder, { recursive: true, force: true })
  }

  #resumeRedis(): void {
    if (this.#suspended !== null) process.kill(this.#suspended, 'SIGCONT')
    this.#suspended = null
  }

  async #linkTo(admin: string): Promise<string> {
    const printed = await posduif(['console', '--json', '--admin-url', admin], this.#folder, this.#env)
    return (JSON.parse(printed) as { url: string }).url
  }
}

/** Lines `KEY=value`, as `posduif dev` writes them. */
function variables(file: string): Environment {
  const lines = readFileSync(file, 'utf8').split('\n')
  const pairs = lines.filter((line) => line.includes('=')).map((line) => line.split(/=(.*)/s))
  return Object.fromEntries(pairs.map(([key, value]) => [key, value]))
}
