// The part that syncs is loaded once the storage is open. It may fail: without a network, or after a deployment.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { clock, type Clock } from '../../src/clock.js'
import { createClient, table, type Client, type Store } from '../../src/index.js'
import { localTransition } from '../../src/machine/local.js'
import { INITIAL } from '../../src/machine/state.js'
import { transition } from '../../src/machine/transition.js'
import { memory } from '../../src/memory/index.js'
import * as part from '../../src/sync/index.js'

type Task = { readonly id: string; readonly title: string }

const tables = { tasks: table<Task>() }

const rejections: unknown[] = []
const record = (error: unknown) => void rejections.push(error)

before(() => void process.on('unhandledRejection', record))
after(() => {
  process.off('unhandledRejection', record)
  assert.deepEqual(rejections, [])
})

/** Timers run when the test says so. */
class Timers {
  list: { readonly run: () => void; readonly ms: number }[] = []
  readonly clock: Clock = {
    ...clock,
    random: () => 0,
    schedule: (run, ms) => {
      const timer = { run, ms }
      this.list.push(timer)
      return () => void (this.list = this.list.filter((other) => other !== timer))
    },
  }

  /** Runs what waits for this long. */
  pass(ms: number): void {
    const due = this.list.filter((timer) => timer.ms === ms)
    this.list = this.list.filter((timer) => timer.ms !== ms)
    assert.ok(due.length > 0, `nothing waits for ${ms} ms: ${JSON.stringify(this.list)}`)
    for (const { run } of due) run()
  }
}

type Loader = { readonly fails: () => Promise<never>; loads: number; isThere: boolean; readonly load: () => Promise<typeof part> }

function loader(): Loader {
  const it: Loader = {
    loads: 0,
    isThere: false,
    fails: () => Promise.reject(new TypeError('Failed to fetch dynamically imported module')),
    load: () => {
      it.loads += 1
      return it.isThere ? Promise.resolve(part) : it.fails()
    },
  }
  return it
}

function open(sync: () => Promise<typeof part>, timers: Timers, store: Store = memory()): Client<typeof tables> {
  return createClient({
    url: 'http://127.0.0.1:9',
    store,
    tables,
    live: 'off',
    sync,
    environment: { clock: timers.clock, fetch: () => Promise.reject(new TypeError('no network')) },
  })
}

function untilStatus(client: Client<typeof tables>, holds: () => boolean): Promise<void> {
  return new Promise((resolve) => {
    const check = () => {
      if (!holds()) return
      stop()
      resolve()
    }
    const stop = client.status.subscribe(check)
    queueMicrotask(check)
  })
}

const code = (client: Client<typeof tables>) => client.status.getSnapshot().error?.code ?? null

test('part that cannot be loaded is a status with the time of the next try, and changes are kept', async () => {
  const [timers, source] = [new Timers(), loader()]
  const store = memory()
  const client = open(source.load, timers, store)
  await untilStatus(client, () => code(client) === 'LOCAL_LOAD_FAILED')
  const { error, leader } = client.status.getSnapshot()
  assert.equal(error?.at, 'down')
  assert.match(error.message, /reload the page/)
  assert.ok(error.retryAt! >= clock.now() + 500, String(error.retryAt))
  assert.equal(leader, false)
  const write = client.tasks.create({ title: 'milk' })
  assert.deepEqual(await write.local, { ok: true })
  assert.deepEqual((await client.tasks.query().get()).map(({ title }) => title), ['milk'])
  // The delay grows.
  timers.pass(1000)
  await untilStatus(client, () => source.loads === 2 && timers.list.some(({ ms }) => ms === 2000))
  assert.equal(code(client), 'LOCAL_LOAD_FAILED')
  source.isThere = true
  timers.pass(2000)
  await untilStatus(client, () => client.status.getSnapshot().leader)
  assert.equal(code(client), null)
  assert.equal(client.status.getSnapshot().outbox.waiting, 1)
  client.close()
  assert.equal((await store.read([{ space: 'outbox' }]))[0]!.length, 1)
})

test('login and sync without the part return its failure, and each tries again', async () => {
  const [timers, source] = [new Timers(), loader()]
  const client = open(source.load, timers)
  await untilStatus(client, () => code(client) === 'LOCAL_LOAD_FAILED')
  const before = source.loads
  const outcomes = [
    await client.login({ username: 'bob', password: 'secret' }),
    await client.enroll('http://127.0.0.1:9/api/enrollment/token'),
    await client.sync(),
  ]
  for (const outcome of outcomes) assert.ok(!outcome.ok && outcome.code === 'LOCAL_LOAD_FAILED', JSON.stringify(outcome))
  assert.ok(source.loads >= before + 3, `${source.loads - before} tries`)
  source.isThere = true
  const login = await client.login({ username: 'bob', password: 'secret' })
  // Now it is the network.
  assert.ok(!login.ok && login.code === 'LOCAL_NO_ANSWER', JSON.stringify(login))
  client.close()
})

test('client that is closed while the part is loading starts nothing', async () => {
  const timers = new Timers()
  let arrive = (_: typeof part) => {}
  let isAsked = () => {}
  const asked = new Promise<void>((resolve) => (isAsked = resolve))
  const client = open(() => {
    isAsked()
    return new Promise((resolve) => (arrive = resolve))
  }, timers)
  const login = client.login({ username: 'bob', password: 'secret' })
  await asked
  client.close()
  arrive(part)
  assert.deepEqual(await login, { ok: false, code: 'LOCAL_CLOSED', message: 'the client is closed' })
  assert.deepEqual(timers.list, [])
})

test('part that never arrives is given up after a time, and by close', async () => {
  const timers = new Timers()
  const client = open(() => new Promise(() => {}), timers)
  const login = client.login({ username: 'bob', password: 'secret' })
  await client.tasks.create({ title: 'milk' }).local
  timers.pass(30_000)
  const outcome = await login
  assert.ok(!outcome.ok && outcome.code === 'LOCAL_LOAD_FAILED', JSON.stringify(outcome))
  assert.match(outcome.message, /30 s/)
  const again = client.enroll('token')
  client.close()
  assert.deepEqual(await again, { ok: false, code: 'LOCAL_CLOSED', message: 'the client is closed' })
  assert.deepEqual(timers.list, [])
})

test('rows are shown while the part is loading', async () => {
  const store = memory()
  const row = { row: { id: 'a', title: 'stored' }, generation: 0 }
  await store.transaction([{ op: 'put', space: 'rows', key: ['tasks', 'a'], value: row }], [], 'strict')
  const client = open(() => new Promise(() => {}), new Timers(), store)
  assert.deepEqual((await client.tasks.query().get()).map(({ title }) => title), ['stored'])
  client.close()
})

test('machine of a client without the part does what the whole one does without the lead', () => {
  const device = { ...INITIAL.device, userId: 'u', token: 't', cursor: 'c' }
  const write = { key: 'k', table: 'tasks', op: 'create', id: 'a', row: {}, merges: false, at: '' } as const
  let state = INITIAL
  for (const event of [
    { type: 'loaded', device, outbox: [] },
    { type: 'write', writes: [write, { ...write, key: 'l', id: 'b' }], stored: new Map() },
    { type: 'discard', key: 'k', result: null },
  ] as const) {
    const step = localTransition(state, event)
    assert.deepEqual(step, transition(state, event))
    state = step.state
  }
  assert.deepEqual(state.outbox.map(({ key, seq }) => [key, seq]), [['l', 1]])
})
