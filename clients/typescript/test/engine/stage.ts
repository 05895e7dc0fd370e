// What all stories share: one engine, a connection to Postgres and to Redis, and users.
import { spawn, type ChildProcess } from 'node:child_process'
import { connect, type Socket } from 'node:net'
import { createInterface } from 'node:readline'
import { Engine } from './engine.js'

const CONFIG = `
routes:
  - table: tasks
    to: [owner_id, assignee_id]
    upload: {owner: owner_id, columns: [title, done, assignee_id]}
limits: {login_attempts_max: 1000000, login_waiting_max: 100000}
rates: {address_per_second: 0, user_per_second: 0, device_per_second: 0, tenant_per_second: 0}
auth: {token_expiry_seconds: 86400, devices_max: 1000}
`

// A trigger notes what anybody ever wrote, outside of the published schemas.
const TABLES = `
  CREATE TABLE tenant_demo.tasks (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    owner_id    uuid NOT NULL REFERENCES tenant_demo.users,
    assignee_id uuid REFERENCES tenant_demo.users,
    title       text NOT NULL,
    done        boolean NOT NULL DEFAULT false,
    version     bigint NOT NULL DEFAULT 1,
    deleted_at  timestamptz
  );
  ALTER TABLE tenant_demo.tasks REPLICA IDENTITY FULL;
  CREATE TABLE public.history (
    number bigserial, id uuid, op text, version bigint, text text, old_text text, is_new_text boolean, is_edit boolean,
    is_read boolean
  );
  CREATE INDEX ON public.history (id);
  CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$
  BEGIN
    INSERT INTO public.history (id, op, version, text, old_text, is_new_text, is_edit, is_read)
    SELECT coalesce(NEW.id, OLD.id), TG_OP, NEW.version, coalesce(n.content, n.title), coalesce(o.content, o.title),
      coalesce(n.content, n.title) IS DISTINCT FROM coalesce(o.content, o.title),
      NEW.version IS DISTINCT FROM OLD.version, n.read_at IS NOT NULL
    FROM jsonb_to_record(coalesce(to_jsonb(NEW), '{}')) n (content text, title text, read_at text),
      jsonb_to_record(coalesce(to_jsonb(OLD), '{}')) o (content text, title text);
    RETURN NULL;
  END $$;
  CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON tenant_demo.tasks
    FOR EACH ROW EXECUTE FUNCTION public.note();
  CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON tenant_demo.messages
    FOR EACH ROW EXECUTE FUNCTION public.note();
`

const WAIT_MS = 30_000

export type User = { readonly id: string; readonly token: string }

export class Stage {
  readonly engine: Engine
  readonly redis: Redis
  /** What has happened to the devices of all stories. */
  shocks = 0
  #texts = 0

  private constructor(engine: Engine, redis: Redis) {
    this.engine = engine
    this.redis = redis
  }

  static async start(strategy: 'manual' | 'last_write_wins'): Promise<Stage> {
    const engine = await Engine.start(`${CONFIG}sync: {conflict_strategy: ${strategy}}\n`, TABLES)
    return new Stage(engine, new Redis(engine.env['REDIS_URL']!))
  }

  async stop(): Promise<void> {
    this.redis.close()
    await this.engine.stop()
  }

  /** A text that was never written before. */
  text(): string {
    return `text ${++this.#texts}`
  }

  /** Two new users with the password of the demo. */
  async users(psql: Psql, name: string): Promise<[User, User]> {
    const users: User[] = []
    for (const part of ['a', 'b']) {
      const username = `${name}${part}`
      const [row] = await psql.rows<{ id: string }>(
        `INSERT INTO tenant_demo.users (username, user_type)
         SELECT '${username}', user_type FROM tenant_demo.users WHERE username = 'bob' RETURNING id`,
      )
      await psql.run(
        `INSERT INTO posduif.credentials
         SELECT (jsonb_populate_record(c, jsonb_build_object('user_id', '${row!.id}'))).*
         FROM posduif.credentials c JOIN tenant_demo.users u ON u.id = c.user_id WHERE username = 'bob'`,
      )
      users.push({ id: row!.id, token: '' })
    }
    await this.published(psql)
    const tokens = [await this.engine.token(`${name}a`), await this.engine.token(`${name}b`)]
    return users.map(({ id }, place) => ({ id, token: tokens[place]! })) as [User, User]
  }

  /** Waits until all that is committed now is in the streams. */
  async published(psql: Psql): Promise<void> {
    const [row] = await psql.rows<{ lsn: string }>("SELECT pg_logical_emit_message(true, 'test', '')::text AS lsn")
    const target = lsn(row!.lsn)
    const since = performance.now()
    for (;;) {
      const end = await this.redis.send('HGET', 'posduif:checkpoint', 'end_lsn')
      if (end !== null && lsn(end) > target) return
      if (performance.now() - since > WAIT_MS) throw new Error('what is committed is not published')
      await new Promise((resolve) => setTimeout(resolve, 2))
    }
  }

  async resync(): Promise<void> {
    this.shocks += 1
    await this.engine.resync()
    this.shocks += 1
  }
}

function lsn(text: string): bigint {
  const [high, low] = text.split('/').map((part) => BigInt(`0x${part}`))
  return (high! << 32n) + low!
}

/** One session of psql: starting a process for each statement would take most of the time. */
export class Psql {
  readonly #process: ChildProcess
  #lines: string[] = []
  #end = (_lines: string[]) => {}
  #last: Promise<unknown> = Promise.resolve()

  constructor(url: string) {
    this.#process = spawn('sh', ['-c', 'exec psql -qAtX "$1" 2>&1', 'psql', url], { stdio: ['pipe', 'pipe', 'inherit'] })
    createInterface({ input: this.#process.stdout! }).on('line', (line) => {
      if (line !== END) return void this.#lines.push(line)
      this.#end(this.#lines.splice(0))
    })
  }

  async run(sql: string): Promise<string[]> {
    const result = this.#last.then(async () => {
      const lines = await new Promise<string[]>((resolve) => {
        this.#end = resolve
        this.#process.stdin!.write(`${sql};\n\\echo ${END}\n`)
      })
      const error = lines.find((line) => /^(ERROR|FATAL):/.test(line))
      if (error) throw new Error(`${sql}: ${lines.join(' ')}`)
      return lines
    })
    this.#last = result.catch(() => {})
    return result
  }

  /** The rows of a statement, which may write. */
  async rows<Row>(sql: string): Promise<Row[]> {
    const lines = await this.run(`WITH t AS (${sql}) SELECT coalesce(json_agg(t), '[]') FROM t`)
    return JSON.parse(lines.join('')) as Row[]
  }

  close(): void {
    this.#process.stdin!.end()
  }
}

const END = '-- end of a statement --'

/** Single commands with a text or a number as their reply. */
export class Redis {
  readonly #socket: Socket
  readonly #waiting: ((reply: string | null) => void)[] = []
  #rest = ''

  constructor(url: string) {
    const { hostname, port, username, password } = new URL(url)
    this.#socket = connect(Number(port), hostname)
    this.#socket.setEncoding('utf8').on('data', (data) => this.#receive(String(data)))
    void this.send('AUTH', decodeURIComponent(username), decodeURIComponent(password))
  }

  send(...words: string[]): Promise<string | null> {
    const parts = words.map((word) => `$${Buffer.byteLength(word)}\r\n${word}\r\n`)
    return new Promise((resolve) => {
      this.#waiting.push(resolve)
      this.#socket.write(`*${words.length}\r\n${parts.join('')}`)
    })
  }

  close(): void {
    this.#socket.destroy()
  }

  #receive(data: string): void {
    this.#rest += data
    for (;;) {
      const end = this.#rest.indexOf('\r\n')
      if (end < 0) return
      const [type, head] = [this.#rest[0], this.#rest.slice(1, end)]
      const length = type === '$' ? Number(head) : -1
      const next = end + 2 + (length < 0 ? 0 : length + 2)
      if (this.#rest.length < next) return
      const reply = type === '$' && length < 0 ? null : length < 0 ? head : this.#rest.slice(end + 2, end + 2 + length)
      this.#rest = this.#rest.slice(next)
      this.#waiting.shift()?.(type === '-' ? `error ${head}` : reply)
    }
  }
}
