import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createElement } from 'react'
import { renderToString } from 'react-dom/server'
import { clock } from '../../src/clock.js'
import { createClient, table } from '../../src/index.js'
import { indexeddb } from '../../src/indexeddb/index.js'
import { INITIAL } from '../../src/machine/state.js'
import { memory } from '../../src/memory/index.js'
import { usePresence, useQuery, useStatus, useWrite } from '../../src/react/index.js'

test('server renders the constant first state, whatever the client has', async () => {
  const client = createClient({
    url: 'http://127.0.0.1:9',
    store: memory(),
    tables: { tasks: table<{ id: string; title: string }>() },
    live: 'off',
  })
  const open = client.tasks.query()
  const stop = open.subscribe(() => {})
  await client.tasks.create({ title: 'milk' }).local
  assert.equal((await open.get()).length, 1)
  function Page() {
    const { rows, phase } = useQuery(open)
    const [, last] = useWrite((title: string) => client.tasks.create({ title }))
    return createElement(
      'p',
      null,
      [rows.length, phase, useStatus(client).outbox.waiting, usePresence(client).size, last.state].join(' '),
    )
  }
  assert.equal(renderToString(createElement(Page)), '<p>0 loading 0 0 none</p>')
  stop()
  client.close()
})

test('every promise settles when the client is closed', async () => {
  const client = createClient({
    url: 'http://127.0.0.1:9',
    store: memory(),
    tables: { tasks: table<{ id: string; title: string }>() },
    live: 'off',
  })
  const write = client.tasks.create({ title: 'milk' })
  assert.deepEqual(await write.local, { ok: true })
  const late = client.tasks.create({ title: 'late' })
  client.close()
  client.close()
  assert.equal((await write.server).status, 'unknown')
  assert.equal((await late.local).ok, false)
  assert.equal(await client.firstSync, false)
  assert.equal((await client.sync()).ok, false)
  assert.equal((await client.tasks.create({ title: 'after' }).local).ok, false)
})

test('table whose name is taken is refused with the way out', () => {
  assert.throws(
    () => createClient({ url: 'http://127.0.0.1:9', store: memory(), tables: { status: table() } }),
    /tables\.status: .*table\(\{ name: 'status' \}\)/,
  )
})

test('row without JSON is refused as a value', async () => {
  const client = createClient({
    url: 'http://127.0.0.1:9',
    store: memory(),
    tables: { tasks: table<{ id: string; n: unknown }>() },
    live: 'off',
  })
  const cycle: { self?: unknown } = {}
  cycle.self = cycle
  for (const n of [cycle, 5n]) {
    const write = client.tasks.create({ n })
    assert.deepEqual([(await write.local).ok, (await write.server).code], [false, 'LOCAL_INVALID'])
  }
  assert.equal((await client.tasks.query().get()).length, 0)
  client.close()
})

test('storage that cannot be opened is a status, and no promise rejects', async () => {
  const client = createClient({
    url: 'http://127.0.0.1:9',
    live: 'off',
    store: {
      ...memory(),
      open: () => Promise.reject(new Error('blocked')),
      transaction: () => Promise.reject(new Error('blocked')),
    },
    tables: { tasks: table<{ id: string; title: string }>() },
  })
  const { ok } = await client.tasks.create({ title: 'milk' }).local
  assert.equal(ok, false)
  assert.equal(client.status.getSnapshot().error?.at, 'store')
  client.close()
})

test('client without IndexedDB, as on a server, starts nothing and reports it', async () => {
  const delays: number[] = []
  const recorder = { ...clock, schedule: (_run: () => void, ms: number) => (delays.push(ms), () => {}) }
  const client = createClient({
    url: 'http://127.0.0.1:9',
    store: indexeddb('app'),
    tables: { tasks: table<{ id: string; title: string }>() },
    environment: { clock: recorder },
  })
  const result = await client.tasks.create({ title: 'milk' }).local
  assert.ok(!result.ok && result.code === 'LOCAL_NO_STORE', JSON.stringify(result))
  assert.equal(client.status.getSnapshot().error?.code, 'LOCAL_NO_STORE')
  assert.deepEqual(delays, [])
})

test('sync that is called at once, without a network, ends with the first request', async () => {
  const store = memory()
  const device = { ...INITIAL.device, deviceId: 'd', userId: 'u', token: 't' }
  await store.transaction([{ op: 'put', space: 'meta', key: 'device', value: device }], [], 'strict')
  const client = createClient({
    url: 'http://127.0.0.1:9',
    store,
    live: 'off',
    // No time passes.
    environment: {
      clock: { ...clock, schedule: () => () => {} },
      fetch: () => Promise.reject(new TypeError('no network')),
    },
  })
  const outcome = await client.sync()
  assert.ok(!outcome.ok && outcome.code === 'LOCAL_NO_ANSWER', JSON.stringify(outcome))
  client.close()
})
