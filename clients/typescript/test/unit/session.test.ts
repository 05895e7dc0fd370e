import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { transition } from '../../src/machine/transition.js'
import type { Write } from '../../src/outbox/item.js'
import { Session, type SessionHooks } from '../../src/session/session.js'
import { StoreError, type Store } from '../../src/store/store.js'
import { storeBatch, storeResults } from '../../src/sync/steps.js'
import { memory } from '../../src/memory/index.js'

const ignore = () => {}

function session(store: Store, hooks: Partial<SessionHooks> = {}): Session {
  const made = new Session(store, {
    run: ignore,
    notify: ignore,
    stored: ignore,
    changed: ignore,
    deposed: ignore,
    failed: ignore,
    appended: ignore,
    waiting: () => [],
    settled: ignore,
    ...hooks,
  })
  made.transition = transition
  return made
}

let keys = 0

function create(title: string): Write {
  return {
    key: `k${++keys}`,
    table: 'tasks',
    op: 'create',
    id: title,
    row: { title },
    merges: false,
    at: '2026-01-01T00:00:00Z',
  }
}

async function leading(store: Store, hooks: Partial<SessionHooks> = {}): Promise<Session> {
  const one = session(store, hooks)
  await one.start(ignore)
  await one.lead(false, false)
  return one
}

async function enrolled(store: Store, hooks: Partial<SessionHooks> = {}): Promise<Session> {
  const one = await leading(store, hooks)
  await one.dispatch({ type: 'enroll', enrollment: { by: 'code', token: 'code' }, freshId: 'device-1' })
  await one.dispatch({ type: 'enrolled', ticket: one.state.ticket, userId: 'u', deviceId: 'device-1', token: 't' })
  return one
}

const batch = {
  messages: [],
  users: [],
  changes: [{ table: 'tasks', op: 'insert', id: 'x', row: { id: 'x' } }],
  cursor: 'c1',
  hasMore: false,
  reset: true,
}

describe('tabs of one storage', () => {
  test('former leader that continues stores nothing and steps down', async () => {
    const store = memory()
    let isDeposed = false
    const former = await enrolled(store, { deposed: () => (isDeposed = true) })
    const { ticket } = former.state
    await leading(store)
    await storeBatch(former, ticket, null, batch, 0)
    assert.equal(isDeposed, true)
    assert.equal(former.state.leads, false)
    assert.deepEqual(await store.read([{ space: 'rows' }]), [[]])
  })

  test('changes of several tabs at once get numbers without gaps', async () => {
    const store = memory()
    const tabs = [await leading(store), session(store), session(store)]
    for (const tab of tabs) await tab.start(ignore)
    const writes = Array.from({ length: 30 }, (_, n) => tabs[n % 3]!.write([create(`task ${n}`)]))
    for (const error of await Promise.all(writes)) assert.equal(error, null)
    const [entries = []] = await store.read([{ space: 'outbox' }])
    assert.deepEqual(
      entries.map(({ key }) => key),
      Array.from({ length: 30 }, (_, n) => n + 1),
    )
    assert.equal(new Set(entries.map(({ value }) => (value as { key: string }).key)).size, 30)
  })

  test('results are stored though another tab writes meanwhile, and its edit keeps a base', async () => {
    const store = memory()
    const leader = await enrolled(store)
    const other = session(store)
    await other.start(ignore)
    await leader.write([create('a')])
    const { ticket } = leader.state
    // The first request for a batch is in flight; its failure lets the upload begin.
    await leader.dispatch({ type: 'failed', ticket, failure: { kind: 'lost', message: '' }, freshId: '' })
    assert.equal(leader.state.busy, 'up')
    await other.reload([])
    await other.write([{ ...create('a'), op: 'edit', row: { title: 'b' } }])
    const result = {
      seq: 1,
      status: 'applied',
      code: null,
      message: null,
      version: 1,
      revision: null,
      winner: null,
      conflictId: null,
      server: null,
      overtaken: false,
    }
    assert.equal(await storeResults(leader, leader.state.ticket, [result]), null)
    const [entries = []] = await store.read([{ space: 'outbox' }])
    assert.deepEqual(
      entries
        .map(({ value }) => value as { seq: number })
        .map(({ seq, baseSeq, baseVersion }: Record<string, unknown>) => [seq, baseSeq, baseVersion]),
      [[2, 1, 1]],
    )
  })

  test('row does not go back in a tab that reads while another one stores a result', async () => {
    const store = memory()
    const leader = await enrolled(store)
    const follower = session(store)
    await follower.start(ignore)
    await leader.write([create('a')])
    await leader.dispatch({
      type: 'failed',
      ticket: leader.state.ticket,
      failure: { kind: 'lost', message: '' },
      freshId: '',
    })
    const seen: unknown[] = []
    follower.view.follow('tasks', () => seen.push(follower.view.rows('tasks')?.get('a')?.['title'] ?? null))
    await follower.load('tasks')
    await storeResults(leader, leader.state.ticket, [
      {
        seq: 1,
        status: 'applied',
        code: null,
        message: null,
        version: 1,
        revision: null,
        winner: null,
        conflictId: null,
        server: null,
        overtaken: false,
      },
    ])
    // It is notified of another row first; what has left its outbox comes with it.
    await follower.reload([['tasks', 'other']])
    assert.ok(seen.length > 0)
    assert.deepEqual(new Set(seen), new Set(['a']))
  })

  test("enrollment by another tab ends the leader's requests and is used by it", async () => {
    const store = memory()
    const ran: string[] = []
    const leader = await enrolled(store, { run: ({ type }) => ran.push(type) })
    const other = session(store)
    await other.start(ignore)
    await other.dispatch({ type: 'enroll', enrollment: { by: 'user', token: 'new' }, freshId: 'unused' })
    ran.length = 0
    await leader.dispatch({
      type: 'failed',
      ticket: leader.state.ticket,
      failure: { kind: 'lost', message: '' },
      freshId: '',
    })
    await leader.reload([])
    assert.ok(ran.includes('enroll'))
  })
})

test('groups and audiences outlive the process, and a leave passes all stored rows', async () => {
  const store = memory()
  const count = 4500
  const one = await enrolled(store)
  const changes = Array.from({ length: count }, (_, n) => ({
    table: 'tasks',
    op: 'insert',
    id: `t${n}`,
    row: { id: `t${n}` },
    via: n % 1000 === 0 ? ['list:1', 'user:u'] : ['list:1'],
  }))
  const join = { table: '', op: 'join', id: '1', row: null, group: 'list' }
  await storeBatch(one, one.state.ticket, null, { ...batch, changes: [join, ...changes] }, 0)
  one.close()

  const left: unknown[] = []
  const two = await leading(store, { notify: (notice) => left.push(notice) })
  assert.deepEqual(two.state.device.groups, ['list:1'])
  await storeBatch(two, two.state.ticket, 'c1', { ...batch, reset: false, cursor: 'c2', changes: [{ ...join, op: 'leave' }] }, 0)
  const [rows = []] = await store.read([{ space: 'rows' }])
  assert.deepEqual(
    rows.map(({ key }) => key[1 as never]),
    ['t0', 't1000', 't2000', 't3000', 't4000'],
  )
  assert.deepEqual(left, [{ name: 'left', group: 'list', id: '1' }])
  two.close()
  assert.deepEqual((await leading(store)).state.device.groups, [])
})

test('tab that loads a table keeps what another tab wrote meanwhile', async () => {
  const store = memory()
  const [one, other] = [await leading(store), session(store)]
  await other.start(ignore)
  await one.write([create('of one')])
  other.view.follow('tasks', ignore)
  await other.load('tasks')
  assert.deepEqual([...(other.view.rows('tasks')?.keys() ?? [])], ['of one'])
  await other.write([create('of the other')])
  const [entries = []] = await store.read([{ space: 'outbox' }])
  assert.deepEqual(
    entries.map(({ key, value }) => [key, (value as { id: string }).id]),
    [
      [1, 'of one'],
      [2, 'of the other'],
    ],
  )
})

test('tab whose reload fails half-way keeps what another tab wrote meanwhile', async () => {
  const store = memory()
  const { transaction } = store
  const leader = await enrolled(store)
  const other = session(store)
  await other.start(ignore)
  await other.write([create('of the other')])
  // The leader reads the change, and cannot store that it sends it.
  await leader.dispatch({
    type: 'failed',
    ticket: leader.state.ticket,
    failure: { kind: 'lost', message: '' },
    freshId: '',
  })
  Object.assign(store, {
    transaction: async () => {
      throw new StoreError('LOCAL_QUOTA', 'full')
    },
  })
  assert.equal((await leader.reload([]))?.code, 'LOCAL_QUOTA')
  Object.assign(store, { transaction })
  assert.equal(await leader.write([create('of the leader')]), null)
  const [entries = []] = await store.read([{ space: 'outbox' }])
  assert.deepEqual(
    entries.map(({ key, value }) => [key, (value as { id: string }).id]),
    [
      [1, 'of the other'],
      [2, 'of the leader'],
    ],
  )
})

describe('failing storage', () => {
  test('step that cannot be stored has no effect', async () => {
    const store = memory()
    const broken = {
      ...store,
      transaction: async () => {
        throw new StoreError('LOCAL_QUOTA', 'full')
      },
    }
    const failures: string[] = []
    const one = await enrolled(store, { failed: ({ code }) => failures.push(code) })
    const before = one.state
    Object.assign(store, { transaction: broken.transaction })
    assert.equal((await storeBatch(one, one.state.ticket, null, batch, 0))?.code, 'LOCAL_QUOTA')
    assert.equal(one.state, before)
    assert.deepEqual(failures, ['LOCAL_QUOTA'])
    assert.equal((await one.write([create('a')]))?.code, 'LOCAL_QUOTA')
    assert.deepEqual(one.state.outbox, [])
  })

  test('storage that recovers is used again', async () => {
    const store = memory()
    const { transaction } = store
    const one = await enrolled(store)
    Object.assign(store, {
      transaction: async () => {
        throw new StoreError('LOCAL_QUOTA', 'full')
      },
    })
    await one.write([create('a')])
    assert.equal(one.storeError?.code, 'LOCAL_QUOTA')
    Object.assign(store, { transaction })
    assert.equal(await one.write([create('b')]), null)
    assert.equal(one.storeError, null)
    assert.deepEqual(
      one.state.outbox.map(({ seq, id }) => [seq, id]),
      [[1, 'b']],
    )
  })
})
