// What a server, an intermediary or a changed schema may send: a clear status, no rejection, and nothing of the outbox lost.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { clock, type Clock } from '../../src/clock.js'
import { createClient, table, type Store } from '../../src/index.js'
import { memory } from '../../src/memory/index.js'

type Task = { readonly id: string; readonly title: string }

const rejections: unknown[] = []
const record = (error: unknown) => void rejections.push(error)

before(() => void process.on('unhandledRejection', record))
after(() => {
  process.off('unhandledRejection', record)
  assert.deepEqual(rejections, [])
})

const ENROLLED = { user_id: 'user-1', device_id: 'device-1', device_token: 'token' }
const BATCH = { messages: [], users: [], changes: [], cursor: 'c1', has_more: false, reset: true }

const row = (id: string, columns: object = {}) => ({ id, title: `title of ${id}`, version: 1, ...columns })
const insert = (id: string, columns: object = {}) => ({ table: 'tasks', op: 'insert', id, row: row(id, columns) })

/** Answers as a test says; by default as a server with nothing. */
class Answers {
  batch: unknown = { ...BATCH }
  results: unknown = null
  readonly uploads: { readonly seq: number }[][] = []
  readonly fetch: typeof fetch = async (input, init) => {
    const { pathname } = new URL(String(input))
    const answer = (body: unknown) => new Response(typeof body === 'string' ? body : JSON.stringify(body))
    if (pathname === '/api/enrollment/complete') return answer(ENROLLED)
    if (pathname === '/api/sync/incoming') return answer(this.batch)
    if (pathname !== '/api/sync/outgoing') return answer({})
    const { items } = JSON.parse(String(init?.body)) as { items: { seq: number }[] }
    this.uploads.push(items)
    return answer(this.results ?? { results: items.map(({ seq }) => ({ seq, status: 'applied', version: 2 })) })
  }
}

/** Repeats wait until the test asks for a sync. */
const still: Clock = { ...clock, schedule: () => () => {} }

function open(answers: Answers, store: Store = memory()) {
  return createClient({
    url: 'http://127.0.0.1:9',
    store,
    tables: { tasks: table<Task>(), notes: table<Task>() },
    live: 'off',
    environment: { clock: still, fetch: answers.fetch },
  })
}

async function enrolled(answers: Answers, store?: Store): Promise<ReturnType<typeof open>> {
  const client = open(answers, store)
  assert.deepEqual(await client.enroll('http://127.0.0.1:9/api/enrollment/code'), { ok: true })
  await client.sync()
  return client
}

/** Resolves when an error is in the status, or none. */
function untilError(client: Pick<ReturnType<typeof open>, 'status'>, isThere: boolean): Promise<void> {
  return new Promise((resolve) => {
    const check = () => (client.status.getSnapshot().error !== null) === isThere && (stop(), resolve())
    const stop = client.status.subscribe(check)
    queueMicrotask(check)
  })
}

const deep = '['.repeat(20_000) + ']'.repeat(20_000)

const batches: Record<string, unknown> = {
  'an empty body': '',
  'the page of a captive portal': '<!doctype html><title>Sign in</title>',
  'half a batch': JSON.stringify({ ...BATCH, changes: [insert('t1')] }).slice(0, 90),
  'null': null,
  'a number': 7,
  'a list': [BATCH],
  'nested lists': deep,
  'no cursor': { ...BATCH, cursor: undefined },
  'a cursor that is a number': { ...BATCH, cursor: 1 },
  'changes that are an object': { ...BATCH, changes: { 0: insert('t1') } },
  'a change that is null': { ...BATCH, changes: [insert('t1'), null] },
  'a change without an operation': { ...BATCH, changes: [{ table: 'tasks', id: 't1', row: row('t1') }] },
  'messages that are texts': { ...BATCH, messages: ['hello'] },
  'has_more that is a text': { ...BATCH, has_more: 'false' },
  'audiences that are numbers': { ...BATCH, changes: [{ ...insert('t1'), via: [1] }] },
}

for (const [name, batch] of Object.entries(batches))
  test(`${name} in place of a batch is a status, and changes nothing`, async () => {
    const answers = new Answers()
    answers.batch = { ...BATCH, changes: [insert('t0')] }
    const client = await enrolled(answers)
    answers.results = 'a proxy'
    const write = client.tasks.create({ title: 'milk' })
    await write.local
    answers.batch = batch
    await client.sync()
    await untilError(client, true)
    const { error, outbox, hasSynced } = client.status.getSnapshot()
    assert.deepEqual([error?.code, outbox.waiting, hasSynced], ['LOCAL_NO_ANSWER', 1, true])
    assert.match(error?.message ?? '', /proxy|captive portal/)
    const titles = async () => (await client.tasks.query({ orderBy: 'title' }).get()).map(({ title }) => title)
    assert.deepEqual(await titles(), ['milk', 'title of t0'])
    // The server is back.
    answers.results = null
    answers.batch = { ...BATCH, reset: false, changes: [insert('t1')] }
    await client.sync()
    assert.equal((await write.server).status, 'applied')
    await untilError(client, false)
    assert.deepEqual(await titles(), ['milk', 'title of t0', 'title of t1'])
    client.close()
  })

const results: Record<string, unknown> = {
  'the page of a captive portal': '<!doctype html>',
  'no list': { results: 'applied' },
  'a result that is null': { results: [null] },
  'no result': { results: [] },
  'the result of another item': { results: [{ seq: 99, status: 'applied', version: 1 }] },
  'a status of a newer server': { results: [{ seq: 1, status: 'postponed' }] },
  'a status that is a number': { results: [{ seq: 1, status: 1 }] },
}

for (const [name, result] of Object.entries(results))
  test(`${name} in place of results keeps the change, which is sent again`, async () => {
    const answers = new Answers()
    const client = await enrolled(answers)
    answers.results = result
    const write = client.tasks.create({ title: 'milk' })
    await write.local
    await untilError(client, true)
    assert.deepEqual([client.status.getSnapshot().outbox.waiting, client.status.getSnapshot().error?.at], [1, 'up'])
    answers.results = null
    await client.sync()
    assert.equal((await write.server).status, 'applied')
    // The same item with the same number.
    assert.deepEqual(answers.uploads.at(-1), answers.uploads[0])
    client.close()
  })

test('columns and tables that this build does not know are kept for the one that does', async () => {
  const answers = new Answers()
  const store = memory()
  const note = { table: 'notes', op: 'insert', id: 'n1', row: { id: 'n1', title: 'note', version: 1 } }
  answers.batch = { ...BATCH, more: { of: 'a newer server' }, changes: [insert('t1', { colour: { name: 'red' } }), note] }
  const old = createClient({
    url: 'http://127.0.0.1:9',
    store,
    tables: { tasks: table<Task>() },
    live: 'off',
    environment: { clock: still, fetch: answers.fetch },
  })
  assert.deepEqual(await old.enroll('http://127.0.0.1:9/api/enrollment/code'), { ok: true })
  await old.sync()
  assert.equal((await old.tasks.edit('t1', { title: 'edited' }).server).status, 'applied')
  old.close()
  const client = open(answers, store)
  const [task] = await client.tasks.query().get()
  assert.deepEqual(task, { ...row('t1', { colour: { name: 'red' } }), title: 'edited', version: 2 })
  assert.deepEqual((await client.notes.query().get()).map(({ title }) => title), ['note'])
  client.close()
})

test('columns that have gone or changed their type do not stop a query', async () => {
  const answers = new Answers()
  answers.batch = {
    ...BATCH,
    changes: [undefined, 7, null, { a: 1 }].map((title, n) => insert(`t${n + 2}`, { title })).concat(insert('t1')),
  }
  const client = await enrolled(answers)
  const ids = async (options: object) => (await client.tasks.query(options).get()).map(({ id }) => id)
  assert.equal((await ids({ orderBy: 'title' })).length, 5)
  assert.deepEqual(await ids({ where: { title: { gte: 'a' } } }), ['t1'])
  client.close()
})
