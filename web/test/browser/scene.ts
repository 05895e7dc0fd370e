import { setInterval as every } from 'node:timers/promises'
import { createClient, table, type Client } from '@posduif/client'
import { memory } from '@posduif/client/memory'
import { Engine } from './engine'

type Order = { id: string; title: string; quantity: number; state: string; version: number }

const tables = { orders: table<Order>() }

const CONFIG = `
sync: {conflict_strategy: manual}
routes:
  - table: orders
    to: [customer_id]
    event: order
    upload: {owner: customer_id, columns: [title, quantity, state]}
  - {table: shipments, to: [driver_id], event: shipment}
`

const TABLES = `
  CREATE TABLE tenant_demo.orders (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    customer_id uuid NOT NULL REFERENCES tenant_demo.users,
    title       text NOT NULL,
    quantity    int NOT NULL DEFAULT 1,
    state       text NOT NULL DEFAULT 'new',
    version     bigint NOT NULL DEFAULT 1,
    deleted_at  timestamptz
  );
  CREATE TABLE tenant_demo.shipments (
    id        uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    driver_id text NOT NULL,
    address   text NOT NULL,
    version   bigint NOT NULL DEFAULT 1
  );
  CREATE FUNCTION tenant_demo.next_version() RETURNS trigger LANGUAGE plpgsql AS $$
  BEGIN
    IF NEW.version = OLD.version THEN NEW.version := OLD.version + 1; END IF;
    RETURN NEW;
  END $$;
  CREATE TRIGGER next_version BEFORE UPDATE ON tenant_demo.orders
    FOR EACH ROW EXECUTE FUNCTION tenant_demo.next_version();
`

/** Orders of all users for some seconds, whose rate rises and falls. */
const load = (seconds: number): string => `
  DO $$
  DECLARE
    began timestamptz := clock_timestamp();
    goods text[] := '{Espresso cups,Walnut desk,Reading lamp,Wool blanket,Notebook A5,Steel bottle}';
    at double precision;
  BEGIN
    LOOP
      at := extract(epoch FROM clock_timestamp() - began);
      EXIT WHEN at > ${seconds};
      INSERT INTO tenant_demo.orders (customer_id, title, quantity)
        SELECT id, goods[1 + floor(random() * 6)::int], 1 + floor(random() * 5)::int
        FROM tenant_demo.users ORDER BY random() LIMIT 1 + floor(random() * 3)::int;
      COMMIT;
      UPDATE tenant_demo.orders SET state = 'packed' WHERE id =
        (SELECT id FROM tenant_demo.orders WHERE state = 'new' LIMIT 1);
      INSERT INTO tenant_acme.messages (sender_id, recipient_id, content)
        SELECT a.id, b.id, 'On my way' FROM tenant_acme.users a, tenant_acme.users b
        WHERE a.username < b.username AND random() < 0.4;
      COMMIT;
      PERFORM pg_sleep(0.12 + 0.1 * sin(at / 5) + 0.1 * random());
    END LOOP;
  END $$`

/** A fetch that can be offline, and that can lose the answer to an upload. */
class Network {
  isOffline = false
  losesNext = false

  readonly fetch: typeof fetch = async (input, init) => {
    if (this.isOffline) throw new TypeError('offline')
    const response = await fetch(input, init)
    if (this.losesNext && String(input).includes('/api/sync/outgoing')) {
      this.losesNext = false
      throw new TypeError('the answer was lost')
    }
    return response
  }
}

/** Of the users of `posduif dev`. */
const PASSWORD = 'posduif-demo'

type Device = { client: Client<typeof tables>; network: Network }

/** A system in use: devices that receive and write, and some things that need an operator. */
export class Scene {
  readonly engine: Engine
  readonly #devices: Device[] = []
  readonly #stop = new AbortController()
  #work: Promise<unknown>[] = []

  private constructor(engine: Engine) {
    this.engine = engine
  }

  static async start(): Promise<Scene> {
    const engine = await Engine.start({ config: CONFIG, tables: TABLES })
    const scene = new Scene(engine)
    for (const name of ['acme', 'globex_international_manufacturing']) {
      await engine.type(`posduif tenant create ${name}`)
      await engine.sql(`INSERT INTO tenant_${name}.users (username, user_type)
        VALUES ('ann', 'web'), ('ben', 'mobile'), ('eva', 'mobile')`)
    }
    await engine.type('posduif stream groups create --tenant demo billing')
    const token = await scene.#login()
    for (const [user, name, type] of [
      ['joe', 'Pixel 9 of Joe', 'mobile'],
      ['joe', 'Joe’s Galaxy Tab', 'mobile'],
      ['sally', 'Sally’s iPhone 16 Pro', 'mobile'],
    ] as const) {
      await scene.#enroll(token, user, name, type)
    }
    await scene.#signIn('bob', 'Firefox on Debian')
    await engine.sql(`
      UPDATE tenant_demo.devices SET device_info =
        jsonb_build_object('app_version', '2.4.' || length(name) % 4, 'os', CASE device_type
          WHEN 'browser' THEN 'Linux' WHEN 'mobile' THEN 'Android 16' END);
      INSERT INTO tenant_demo.devices (device_id, user_id, name, device_info, created_at, last_seen_at)
        SELECT 'warehouse-scanner-0042-rotterdam', id, 'Scanner 42, Rotterdam, hall 3', '{"app_version": "2.3.0", "os": "Android 12"}',
          now() - interval '80 days', now() - interval '3 days 4 hours'
        FROM tenant_demo.users WHERE username = 'sally'`)
    return scene
  }

  /** Load for some seconds, which goes on until the scene stops. */
  async run(seconds: number): Promise<void> {
    this.#work.push(this.#write())
    await this.engine.sql(load(seconds), 1000 * (seconds + 60))
    this.#work.push(this.engine.sql(load(600), 660_000).catch(() => {}))
  }

  /** A conflict, a change that cannot be delivered and slots without a reader. */
  async trouble(): Promise<void> {
    const { engine } = this
    await engine.sql("INSERT INTO tenant_demo.shipments (driver_id, address) VALUES ('driver 7', 'Coolsingel 40, Rotterdam')")
    await this.#conflict()
    await engine.sql("SELECT pg_create_logical_replication_slot('old_connector', 'pgoutput')")
    await engine.sql("SELECT pg_create_physical_replication_slot('standby_frankfurt_availability_zone_b', true)")
  }

  async stop(): Promise<void> {
    this.#stop.abort()
    await this.engine
      .sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%goods text%' AND pid <> pg_backend_pid()")
      .catch(() => {})
    await Promise.allSettled(this.#work)
    for (const { client } of this.#devices) client.close()
    await this.engine.stop()
  }

  /** Uploads at a steady pace; some answers are lost, so that an upload comes twice, and some items are refused. */
  async #write(): Promise<void> {
    let round = 0
    try {
      for await (const _ of every(450, null, { signal: this.#stop.signal })) {
        round += 1
        for (const { client, network } of this.#devices.slice(0, round % 3 === 0 ? 3 : 1)) {
          network.losesNext = round % 9 === 4
          client.orders.create({ title: 'Wool blanket', quantity: 1, state: 'new' })
        }
        if (round % 40 === 20) {
          this.#devices[1]?.client.messages.create({ recipient_id: '00000000-0000-4000-8000-000000000000', content: 'Hi' })
        }
      }
    } catch (error) {
      if (!this.#stop.signal.aborted) throw error
    }
  }

  async #conflict(): Promise<void> {
    const { client, network } = this.#devices[2]!
    const write = client.orders.create({ title: 'Reading lamp', quantity: 2, state: 'new' })
    await write.server
    network.isOffline = true
    const edit = client.orders.edit(write.id, { quantity: 3, title: 'Reading lamp, brass' })
    await edit.local
    await this.engine.sql(`UPDATE tenant_demo.orders SET state = 'packed', title = 'Reading lamp, black' WHERE id = '${write.id}'`)
    network.isOffline = false
    await client.sync()
    await edit.server
  }

  async #login(): Promise<string> {
    const body = { username: 'bob', password: PASSWORD, tenant: 'demo' }
    return (await this.#post<{ token: string }>('/api/auth/login', body)).token
  }

  #add(name: string, type: 'mobile' | 'browser'): Client<typeof tables> {
    const network = new Network()
    const client = createClient({
      url: this.engine.url,
      store: memory(),
      tables,
      live: 'sse',
      device: { name, type },
      environment: { fetch: network.fetch },
    })
    this.#devices.push({ client, network })
    return client
  }

  async #signIn(username: string, name: string): Promise<void> {
    const client = this.#add(name, 'browser')
    const outcome = await client.login({ username, password: PASSWORD, tenant: 'demo' })
    if (!outcome.ok) throw new Error(`${name}: ${outcome.code}: ${outcome.message}`)
    await client.firstSync
  }

  async #enroll(token: string, user: string, name: string, type: 'mobile' | 'browser'): Promise<void> {
    const client = this.#add(name, type)
    const [id] = await this.engine.sql(`SELECT id FROM tenant_demo.users WHERE username = '${user}'`)
    const created = await this.#post<{ qr_code_data: { enrollment_url: string } }>(
      '/api/enrollment/create',
      { user_id: id },
      token,
    )
    const outcome = await client.enroll(created.qr_code_data.enrollment_url)
    if (!outcome.ok) throw new Error(`${name}: ${outcome.code}: ${outcome.message}`)
    await client.firstSync
  }

  async #post<T>(path: string, body: unknown, token?: string): Promise<T> {
    const response = await fetch(this.engine.url + path, {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...(token ? { authorization: `Bearer ${token}` } : {}) },
      body: JSON.stringify(body),
      signal: AbortSignal.timeout(15_000),
    })
    if (!response.ok) throw new Error(`${path} answered ${response.status}: ${await response.text()}`)
    return (await response.json()) as T
  }
}
