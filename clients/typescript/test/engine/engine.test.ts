import assert from 'node:assert/strict'
import { copyFileSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, afterEach, before, beforeEach, describe, test } from 'node:test'
import wasm from 'node-sqlite3-wasm'
import { sqlite } from '../../src/sqlite/index.js'
import type { Conflict, OutboxEntry, ServerResult, Store, Write } from '../../src/index.js'
import { memory } from '../../src/memory/index.js'
import { Engine } from './engine.js'
import { Proxy, type Fault } from './proxy.js'
import { bob, client, jane, until, untilStatus, untilTitles, type TestClient } from './support.js'

let engine: Engine
let proxy: Proxy
let clients: TestClient[] = []

before(async () => {
  engine = await Engine.start()
})
after(() => engine?.stop())
beforeEach(async () => {
  proxy = await Proxy.start(engine.url)
  clients = []
  await engine.sql('DELETE FROM tenant_demo.tasks; DELETE FROM tenant_demo.message_conflicts')
})
afterEach(async () => {
  for (const each of clients) each.close()
  await proxy.stop()
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true, force: true })
})

function open(options: Parameters<typeof client>[1] = {}): TestClient {
  const opened = client(proxy.url, options)
  clients.push(opened)
  return opened
}

async function signedIn(options: Parameters<typeof client>[1] = {}, login = bob): Promise<TestClient> {
  const opened = open(options)
  assert.deepEqual(await opened.login(login), { ok: true })
  assert.equal(await opened.firstSync, true)
  return opened
}

async function applied(result: Promise<ServerResult>): Promise<void> {
  const { status, message } = await result
  assert.ok(status === 'applied' || status === 'duplicate', `${status}: ${message}`)
}

/** Each fault in turn, then none. */
function faults(path: string, ...list: Fault[]): void {
  const left = [...list]
  proxy.fault = (_method, requested) => (requested.startsWith(path) ? (left.shift() ?? 'pass') : 'pass')
}

/** As of an engine that was restored to before this device: it does not know the token. */
function forgetDevice(): void {
  let isKnown = false
  proxy.fault = (_method, path) => {
    if (path === '/api/devices') isKnown = true
    return isKnown || !path.startsWith('/api/sync') ? 'pass' : { status: 401, body: '{"error":{"code":"UNAUTHORIZED"}}' }
  }
}

async function openConflicts(): Promise<string> {
  const [count] = await engine.sql('SELECT count(*) FROM tenant_demo.message_conflicts WHERE resolved_at IS NULL')
  return count!
}

/** Makes a change offline that is late, and returns it with its conflict. */
async function lateEdit(
  by: TestClient,
  edit: () => Write,
  other: () => Promise<void>,
): Promise<{ late: Write; conflict: Conflict }> {
  proxy.fault = (_method, path) => (path.startsWith('/sse') || path.startsWith('/api/sync') ? 'lose request' : 'pass')
  const late = edit()
  await late.local
  const conflict = new Promise<Conflict>((resolve) => by.on('conflict', resolve))
  await other()
  proxy.fault = () => 'pass'
  return { late, conflict: await conflict }
}

async function titles(): Promise<string[]> {
  return engine.sql('SELECT title FROM tenant_demo.tasks WHERE deleted_at IS NULL ORDER BY title')
}

const folders: string[] = []

function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'posduif-client-'))
  folders.push(folder)
  return folder
}

function sqliteFile(file: string): Store {
  const database = new wasm.Database(file)
  return sqlite({
    exec: (sql) => database.exec(sql),
    prepare: (sql) => {
      const statement = database.prepare(sql)
      return { run: (...values) => statement.run(values), all: (...values) => statement.all(values) }
    },
    close: () => database.close(),
  })
}

describe('with an engine', () => {
  test('login adds a device and the first snapshot arrives', async () => {
    await engine.sql(
      `INSERT INTO tenant_demo.tasks (owner_id, title) SELECT id, 'milk' FROM tenant_demo.users WHERE username = 'bob'`,
    )
    const phone = await signedIn()
    await untilTitles(phone, 'milk')
    const users = await phone.users.query({ orderBy: 'username' }).get()
    assert.deepEqual(
      users.map(({ username }) => username),
      ['bob', 'jane', 'joe', 'sally'],
    )
    assert.equal(phone.status.getSnapshot().state, 'stream')
  })

  test('wrong password is a value', async () => {
    const phone = open()
    const outcome = await phone.login({ ...bob, password: 'wrong password' })
    assert.ok(!outcome.ok && outcome.code === 'UNAUTHORIZED', JSON.stringify(outcome))
    assert.equal(phone.status.getSnapshot().state, 'unenrolled')
  })

  test('enrollment by its address adds a device of the named user, once', async () => {
    const url = await engine.enrollment('joe')
    const phone = open()
    assert.deepEqual(await phone.enroll(url), { ok: true })
    const other = await open().enroll(url)
    assert.ok(!other.ok && other.code === 'ENROLLMENT_USED', JSON.stringify(other))
  })

  test('lost answer of an enrollment is repeated with the same device', async () => {
    const url = await engine.enrollment('joe')
    faults('/api/enrollment/complete', 'lose answer', 'lose request')
    const phone = open()
    assert.deepEqual(await phone.enroll(url), { ok: true })
    const bodies = proxy.seen.filter(({ path }) => path === '/api/enrollment/complete').map(({ body }) => body)
    assert.equal(bodies.length, 3)
    assert.equal(new Set(bodies).size, 1)
  })

  for (const live of ['sse', 'websocket', 'auto'] as const) {
    test(
      `change in Postgres is notified by ${live}`,
      { skip: live === 'websocket' && typeof WebSocket === 'undefined' && 'Node has no WebSocket before 22' },
      async () => {
        const phone = await signedIn({ live })
        await untilStatus(phone, (status) => status.upToDate && status.live !== 'connecting', 'an open stream')
        await engine.sql(
          `INSERT INTO tenant_demo.tasks (owner_id, title) SELECT id, 'milk' FROM tenant_demo.users WHERE username = 'bob'`,
        )
        await untilTitles(phone, 'milk')
        await engine.sql(`UPDATE tenant_demo.tasks SET title = 'soy', version = version + 1`)
        await untilTitles(phone, 'soy')
        await engine.sql('DELETE FROM tenant_demo.tasks')
        await untilTitles(phone)
      },
    )
  }

  test('broken stream is opened again and what was missed arrives', async () => {
    const phone = await signedIn()
    await untilStatus(phone, ({ live }) => live === 'sse', 'an open stream')
    proxy.down()
    await untilStatus(phone, ({ live }) => live === 'connecting', 'a broken stream')
    await engine.sql(
      `INSERT INTO tenant_demo.tasks (owner_id, title) SELECT id, 'missed' FROM tenant_demo.users WHERE username = 'bob'`,
    )
    await untilStatus(phone, ({ online }) => !online, 'offline, although no request failed but that of the stream')
    proxy.up()
    await untilTitles(phone, 'missed')
    await untilStatus(phone, ({ live, online, error }) => live === 'sse' && online && !error, 'an open stream')
  })

  test('lost answers of uploads apply each change once', async () => {
    const phone = await signedIn()
    faults(
      '/api/sync/outgoing',
      'lose answer',
      'lose request',
      'cut answer',
      { status: 503, headers: { 'retry-after': '0' } },
      'lose answer',
    )
    const write = phone.tasks.create({ title: 'one' })
    const edit = phone.tasks.edit(write.id, { title: 'two' })
    await applied(write.server)
    await applied(edit.server)
    assert.deepEqual(await engine.sql('SELECT title, version FROM tenant_demo.tasks'), ['two|2'])
    assert.equal(phone.status.getSnapshot().outbox.waiting, 0)
  })

  test('row never goes back while its edits are lost, repeated and received', async () => {
    const phone = await signedIn()
    const write = phone.tasks.create({ title: '000' })
    const query = phone.tasks.query()
    const seen: string[] = []
    query.subscribe(() => seen.push(...query.getSnapshot().rows.map(({ title }) => title)))
    let count = 0
    proxy.fault = (_method, path) => {
      count += 1
      if (!path.startsWith('/api/sync/')) return 'pass'
      return (['pass', 'lose answer', 'pass', 'lose request', 'pass'] as const)[count % 5]!
    }
    const results: Promise<ServerResult>[] = [write.server]
    for (let n = 1; n <= 40; n += 1) {
      const edit = phone.tasks.edit(write.id, { title: String(n).padStart(3, '0') })
      await edit.local
      results.push(edit.server)
      // Every few edits, one reaches the server and comes back while others wait.
      if (n % 4 === 0) await edit.server
    }
    for (const result of results) assert.notEqual((await result).status, 'conflict')
    proxy.fault = () => 'pass'
    await phone.sync()
    assert.deepEqual(await engine.sql('SELECT title, version FROM tenant_demo.tasks'), ['040|41'])
    assert.deepEqual(seen, [...seen].sort())
    assert.equal(seen.at(-1), '040')
  })

  test('refused change is a value and those behind it are applied', async () => {
    const phone = await signedIn()
    const rejected: OutboxEntry[] = []
    phone.on('rejected', (entry) => rejected.push(entry))
    const bad = phone.tasks.create({ title: '' })
    const good = phone.tasks.create({ title: 'good' })
    const result = await bad.server
    assert.deepEqual([result.status, result.code], ['rejected', 'VALIDATION_ERROR'])
    await applied(good.server)
    await untilStatus(phone, ({ outbox }) => outbox.rejected === 1, 'one refused change')
    assert.equal(rejected[0]?.key, bad.key)
    assert.deepEqual(await phone.outbox.discard(bad.key), { ok: true })
    assert.deepEqual(await phone.outbox.list(), [])
    assert.equal(phone.status.getSnapshot().outbox.rejected, 0)
  })

  const decisions = {
    "the event's server": (_client: TestClient, { resolve }: Conflict) => resolve('server'),
    "the event's mine": (_client: TestClient, { resolve }: Conflict) => resolve('mine'),
    'outbox.discard': (client: TestClient, { key }: Conflict) => client.outbox.discard(key),
    'outbox.retry': async (client: TestClient, { key }: Conflict) => (await client.outbox.retry(key))?.local,
  }

  for (const [name, decide] of Object.entries(decisions))
    test(`late edit of another device is a conflict that ${name} decides, here and on the server`, async () => {
      const isMine = name.endsWith('mine') || name.endsWith('retry')
      const [one, other] = [await signedIn(), await signedIn()]
      const write = one.tasks.create({ title: 'base' })
      await applied(write.server)
      await untilTitles(other, 'base')
      const { late, conflict } = await lateEdit(other, () => other.tasks.edit(write.id, { title: 'late' }), async () => {
        await engine.sql("UPDATE tenant_demo.tasks SET title = 'first', version = version + 1")
      })
      const result = await late.server
      assert.deepEqual([result.status, result.winner, result.server?.['version']], ['conflict', 'theirs', 2])
      assert.deepEqual(conflict.mine, { title: 'late' })
      await untilStatus(other, ({ outbox }) => outbox.conflicts === 1, 'the conflict')
      assert.equal(await openConflicts(), '1')
      assert.deepEqual(await decide(other, conflict), { ok: true })
      assert.deepEqual(await other.sync(), { ok: true })
      assert.equal(await openConflicts(), '0')
      for (const each of [one, other]) await untilTitles(each, isMine ? 'late' : 'first')
      await untilStatus(other, ({ outbox }) => outbox.conflicts === 0 && outbox.waiting === 0, 'no open conflict')
    })

  test('conflict of a message is decided in the same way', async () => {
    for (const choice of ['mine', 'server'] as const) {
      const [web, phone] = [await signedIn(), open()]
      assert.deepEqual(await phone.enroll(await engine.enrollment('joe')), { ok: true })
      const sent = web.messages.create({ recipient_id: phone.userId!, content: 'hello' })
      await applied(sent.server)
      const inbox = phone.messages.query({ where: { id: sent.id } })
      const content = () => inbox.getSnapshot().rows[0]?.content
      await until(inbox, () => content() === 'hello', 'the message')
      const { conflict } = await lateEdit(web, () => web.messages.edit(sent.id, { content: 'late' }), async () => {
        await engine.sql(`UPDATE tenant_demo.messages SET content = 'first' WHERE id = '${sent.id}'`)
      })
      assert.deepEqual([conflict.table, conflict.server?.['content']], ['messages', 'first'])
      assert.deepEqual(await conflict.resolve(choice), { ok: true })
      assert.deepEqual(await web.sync(), { ok: true })
      assert.equal(await openConflicts(), '0')
      await until(inbox, () => content() === (choice === 'mine' ? 'late' : 'first'), 'the decision')
      for (const each of [web, phone]) each.close()
    }
  })

  test('conflict without a decision is reported again after a restart, and is decided offline', async () => {
    const file = join(temporaryFolder(), 'app.sqlite')
    const first = await signedIn({ store: sqliteFile(file) })
    const write = first.tasks.create({ title: 'base' })
    await applied(write.server)
    await lateEdit(first, () => first.tasks.edit(write.id, { title: 'late' }), async () => {
      await engine.sql("UPDATE tenant_demo.tasks SET title = 'first', version = version + 1")
    })
    const bad = first.tasks.create({ title: '' })
    assert.equal((await bad.server).status, 'rejected')
    first.close()
    proxy.down()
    const second = open({ store: sqliteFile(file) })
    const reported: string[] = []
    second.on('rejected', ({ key }) => reported.push(key))
    const conflict = await new Promise<Conflict>((resolve) => second.on('conflict', resolve))
    assert.deepEqual([conflict.id, conflict.mine, reported], [write.id, { title: 'late' }, [bad.key]])
    await untilStatus(second, ({ outbox }) => outbox.conflicts === 1 && outbox.rejected === 1, 'what is open')
    // A handler that comes later receives it, too.
    const again = await new Promise<Conflict>((resolve) => second.on('conflict', resolve))
    assert.equal(again.key, conflict.key)
    assert.deepEqual(await conflict.resolve('server'), { ok: true })
    assert.deepEqual((await second.outbox.list()).map(({ key }) => key), [bad.key])
    second.close()
    proxy.up()
    const third = open({ store: sqliteFile(file) })
    third.on('conflict', () => assert.fail('the conflict was decided'))
    await untilStatus(third, ({ upToDate }) => upToDate, 'a sync')
    assert.deepEqual(await third.sync(), { ok: true })
    assert.equal(await openConflicts(), '0')
  })

  test('conflict that is decided on another page is no longer open here', async () => {
    const phone = await signedIn()
    const write = phone.tasks.create({ title: 'base' })
    await applied(write.server)
    const { conflict } = await lateEdit(phone, () => phone.tasks.edit(write.id, { title: 'late' }), async () => {
      await engine.sql("UPDATE tenant_demo.tasks SET title = 'first', version = version + 1")
    })
    const rows = phone.conflicts.query()
    await until(rows, () => rows.getSnapshot().rows.length === 1, 'the row of the conflict')
    await engine.resolveConflicts()
    await untilStatus(phone, ({ outbox }) => outbox.conflicts === 0, 'no open conflict')
    assert.deepEqual(await phone.outbox.list(), [])
    const late = await conflict.resolve('mine')
    assert.ok(!late.ok && late.code === 'LOCAL_NOT_FOUND', JSON.stringify(late))
    assert.deepEqual(await titles(), ['first'])
  })

  test('conflict that was decided on another page before its answer arrived is not open here', async () => {
    const phone = await signedIn()
    const write = phone.tasks.create({ title: 'base' })
    await applied(write.server)
    const rows = phone.conflicts.query()
    phone.on('conflict', () => assert.fail('the conflict was decided'))
    proxy.fault = (_method, path) => (path.startsWith('/sse') || path.startsWith('/api/sync') ? 'lose request' : 'pass')
    const late = phone.tasks.edit(write.id, { title: 'late' })
    await late.local
    await engine.sql("UPDATE tenant_demo.tasks SET title = 'first', version = version + 1")
    proxy.fault = (method) => (method === 'POST' ? 'lose answer' : 'pass')
    await until(rows, () => rows.getSnapshot().rows.length === 1, 'the row of the conflict')
    const unsubscribe = rows.subscribe(() => {})
    await engine.resolveConflicts()
    await until(rows, () => rows.getSnapshot().rows.length === 0, 'no row of a conflict')
    unsubscribe()
    assert.equal(phone.status.getSnapshot().outbox.waiting, 1)
    proxy.fault = () => 'pass'
    assert.equal((await late.server).status, 'conflict')
    assert.deepEqual(await phone.sync(), { ok: true })
    assert.deepEqual([await phone.outbox.list(), phone.status.getSnapshot().outbox.conflicts], [[], 0])
    await untilTitles(phone, 'first')
  })

  for (const isDecided of [true, false]) {
    const outcome = isDecided ? 'decided elsewhere is not open here' : 'not decided is open here'
    test(`conflict of before a reset, with its answer behind that, ${outcome}`, async () => {
      const phone = await signedIn()
      const write = phone.tasks.create({ title: 'base' })
      await applied(write.server)
      proxy.fault = () => 'lose request'
      proxy.cut()
      const late = phone.tasks.edit(write.id, { title: 'late' })
      await late.local
      await engine.sql("UPDATE tenant_demo.tasks SET title = 'first', version = version + 1")
      proxy.fault = (_method, path) => (path.startsWith('/api/sync/outgoing') ? 'lose answer' : 'lose request')
      void phone.sync()
      while ((await openConflicts()) !== '1') await phone.sync()
      if (isDecided) await engine.resolveConflicts()
      await engine.resync()
      const reset = new Promise((resolve) => phone.on('reset', resolve))
      proxy.fault = (method) => (method === 'POST' ? 'lose request' : 'pass')
      void phone.sync()
      await reset
      await untilStatus(phone, ({ state }) => state === 'stream', 'the end of the snapshot')
      assert.equal(phone.status.getSnapshot().outbox.waiting, 1)
      proxy.fault = () => 'pass'
      assert.equal((await late.server).status, 'conflict')
      assert.deepEqual(await phone.sync(), { ok: true })
      if (!isDecided) await untilStatus(phone, ({ outbox }) => outbox.conflicts === 1, 'an open conflict')
      assert.deepEqual((await phone.outbox.list()).map(({ key }) => key), isDecided ? [] : [late.key])
      assert.equal(await openConflicts(), isDecided ? '0' : '1')
      await untilTitles(phone, 'first')
    })
  }

  test('conflict that was decided elsewhere holds nothing back', async () => {
    const phone = await signedIn()
    const write = phone.tasks.create({ title: 'base' })
    await applied(write.server)
    const { conflict } = await lateEdit(phone, () => phone.tasks.edit(write.id, { title: 'late' }), async () => {
      await engine.sql("UPDATE tenant_demo.tasks SET title = 'first', version = version + 1")
    })
    // As of a conflict that another page has resolved with another resolution, before the batch says so.
    const refusal = { status: 409, body: '{"error":{"code":"CONFLICT"}}' }
    proxy.fault = (_method, path) => (path.startsWith('/api/conflicts/') ? refusal : 'pass')
    assert.deepEqual(await conflict.resolve('server'), { ok: true })
    assert.deepEqual(await phone.sync(), { ok: true })
    await applied(phone.tasks.create({ title: 'next' }).server)
    assert.equal(proxy.count('POST', '/api/conflicts/'), 1)
  })

  test('revoked device keeps rows and outbox, and continues after a login', async () => {
    const phone = await signedIn()
    await applied(phone.tasks.create({ title: 'before' }).server)
    const signedOut = new Promise((resolve) => phone.on('signedOut', resolve))
    await engine.revoke('bob')
    await signedOut
    assert.equal(phone.status.getSnapshot().state, 'unenrolled')
    const write = phone.tasks.create({ title: 'during' })
    assert.deepEqual(await write.local, { ok: true })
    await untilTitles(phone, 'before', 'during')
    assert.deepEqual(await phone.login(bob), { ok: true })
    await applied(write.server)
    assert.deepEqual(await titles(), ['before', 'during'])
  })

  test('revoked device is not added again by itself, although the app still has a token', async () => {
    const file = join(temporaryFolder(), 'app.sqlite')
    const reasons: string[] = []
    const credentials = async ({ reason }: { reason: string }) => {
      reasons.push(reason)
      return { token: await engine.token('bob') }
    }
    const first = open({ credentials, store: sqliteFile(file) })
    await first.firstSync
    const signedOut = new Promise<{ code: string }>((resolve) => first.on('signedOut', resolve))
    await engine.revoke('bob')
    assert.equal((await signedOut).code, 'DEVICE_REVOKED')
    assert.deepEqual(await first.tasks.create({ title: 'during' }).local, { ok: true })
    first.close()
    const second = open({ credentials, store: sqliteFile(file) })
    await untilStatus(second, ({ error }) => error?.code === 'DEVICE_REVOKED', 'the reason')
    await untilTitles(second, 'during')
    assert.deepEqual(reasons, ['start'])
    assert.deepEqual(await titles(), [])
    // The user wants it.
    assert.deepEqual(await second.sync(), { ok: true })
    await untilStatus(second, ({ state, error, outbox }) => state === 'stream' && !error && outbox.waiting === 0, 'a sync')
    assert.equal(reasons.length, 2)
    assert.deepEqual(await titles(), ['during'])
  })

  test('credentials are asked for once when the token ends, and the same one is not sent again', async () => {
    const reasons: string[] = []
    const tokens = [await engine.token('bob'), 'not a token', 'not a token', await engine.token('bob')]
    const phone = open({
      credentials: async ({ reason }) => {
        reasons.push(reason)
        return { token: tokens[reasons.length - 1] ?? '' }
      },
    })
    assert.equal(await phone.firstSync, true)
    assert.deepEqual(reasons, ['start'])
    forgetDevice()
    void phone.sync()
    await untilStatus(
      phone,
      ({ state, error }) => state === 'stream' && error === null && reasons.length === 4,
      'a new token',
    )
    assert.deepEqual(reasons, ['start', 'refused', 'refused', 'refused'])
    const sent = proxy.seen.filter(({ path }) => path === '/api/devices').length
    assert.equal(sent, 3)
  })

  test('credentials that are null sign out, and rows stay', async () => {
    let token: string | null = await engine.token('bob')
    const phone = open({ credentials: async () => (token === null ? null : { token }) })
    await phone.firstSync
    await applied(phone.tasks.create({ title: 'milk' }).server)
    token = null
    const signedOut = new Promise((resolve) => phone.on('signedOut', resolve))
    forgetDevice()
    void phone.sync()
    await signedOut
    await untilTitles(phone, 'milk')
    const outcome = await phone.sync()
    assert.ok(!outcome.ok && outcome.code === 'LOCAL_SIGNED_OUT', JSON.stringify(outcome))
  })

  test('reset while the device is offline with a full outbox loses no change', async () => {
    const phone = await signedIn()
    await applied(phone.tasks.create({ title: 'known' }).server)
    proxy.down()
    await untilStatus(phone, ({ live }) => live === 'connecting', 'a broken stream')
    const writes = Array.from({ length: 1200 }, (_, n) => phone.tasks.create({ title: `offline ${n}` }))
    for (const write of writes) assert.deepEqual(await write.local, { ok: true })
    await engine.resync()
    const reset = new Promise((resolve) => phone.on('reset', resolve))
    proxy.up()
    for (const write of writes) await applied(write.server)
    await reset
    await untilStatus(phone, ({ state, upToDate }) => state === 'stream' && upToDate, 'the end of the snapshot')
    assert.deepEqual(await engine.sql('SELECT count(*), count(DISTINCT title) FROM tenant_demo.tasks'), ['1201|1201'])
    const rows = await phone.tasks.query().get()
    assert.equal(rows.length, 1201)
    assert.ok(rows.every(({ version }) => version === 1))
  })

  test('client that ends before the answer sends its changes after it starts again', async () => {
    const file = join(temporaryFolder(), 'app.sqlite')
    const first = await signedIn({ store: sqliteFile(file) })
    proxy.fault = (_method, path) => (path.startsWith('/api/sync/outgoing') ? 'lose answer' : 'pass')
    const write = first.tasks.create({ title: 'one' })
    await write.local
    const edit = first.tasks.edit(write.id, { title: 'two' })
    await edit.local
    await untilStatus(first, ({ error }) => error?.at === 'up', 'a lost answer')
    first.close()
    assert.equal((await write.server).status, 'unknown')
    proxy.fault = () => 'pass'
    const second = open({ store: sqliteFile(file) })
    await untilStatus(second, ({ outbox, upToDate }) => outbox.waiting === 0 && upToDate, 'an empty outbox')
    await untilTitles(second, 'two')
    assert.deepEqual(await engine.sql('SELECT title, version FROM tenant_demo.tasks'), ['two|2'])
  })

  test('client that was restored from an older copy loses and repeats nothing', async () => {
    const folder = temporaryFolder()
    const [file, copy] = [join(folder, 'app.sqlite'), join(folder, 'copy.sqlite')]
    const first = await signedIn({ store: sqliteFile(file) })
    await applied(first.tasks.create({ title: 'before' }).server)
    first.close()
    copyFileSync(file, copy)
    const second = open({ store: sqliteFile(file) })
    await applied(second.tasks.create({ title: 'after the copy' }).server)
    second.close()
    const restored = open({ store: sqliteFile(copy) })
    await applied(restored.tasks.create({ title: 'restored' }).server)
    await untilStatus(restored, ({ upToDate }) => upToDate, 'the end of the snapshot')
    await untilTitles(restored, 'after the copy', 'before', 'restored')
    assert.deepEqual(await titles(), ['after the copy', 'before', 'restored'])
  })

  test('client whose numbers the server has lost goes on from what it expects', async () => {
    const phone = await signedIn()
    for (const title of ['first', 'second']) await applied(phone.tasks.create({ title }).server)
    await engine.sql('DELETE FROM posduif.upload_devices')
    const before = proxy.count('POST', '/api/sync/outgoing')
    await applied(phone.tasks.create({ title: 'third' }).server)
    assert.ok(proxy.count('POST', '/api/sync/outgoing') - before >= 2, 'there was no gap')
    assert.deepEqual(await titles(), ['first', 'second', 'third'])
    await untilStatus(phone, ({ upToDate, error }) => upToDate && error === null, 'the end of the snapshot')
    await untilTitles(phone, 'first', 'second', 'third')
  })

  test('change that was never sent can be withdrawn, and one that was sent cannot', async () => {
    const phone = await signedIn()
    proxy.fault = (_method, path) => (path.startsWith('/api/sync/outgoing') ? 'lose answer' : 'pass')
    const sent = phone.tasks.create({ title: 'sent' })
    await untilStatus(phone, ({ error }) => error?.at === 'up', 'a lost answer')
    const never = phone.tasks.create({ title: 'never' })
    const kept = phone.tasks.create({ title: 'kept' })
    await kept.local
    const first = await phone.outbox.discard(sent.key)
    assert.ok(!first.ok && first.code === 'LOCAL_SENT')
    const second = await phone.outbox.discard(never.key)
    proxy.fault = () => 'pass'
    await applied(sent.server)
    await applied(kept.server)
    // A repeat may have begun in the meantime; then it cannot be withdrawn any more.
    assert.deepEqual(await titles(), second.ok ? ['kept', 'sent'] : ['kept', 'never', 'sent'])
    if (second.ok) assert.equal((await never.server).status, 'unknown')
  })

  test('another user does not see the rows, and unsent changes wait for their user', async () => {
    const store = memory()
    const phone = await signedIn({ store })
    await applied(phone.tasks.create({ title: 'of bob' }).server)
    proxy.fault = (_method, path) => (path.startsWith('/api/sync/outgoing') ? 'lose request' : 'pass')
    await phone.tasks.create({ title: 'unsent' }).local
    assert.deepEqual(await phone.login(jane), { ok: true })
    proxy.fault = () => 'pass'
    await untilStatus(phone, ({ state, upToDate }) => state === 'stream' && upToDate, 'the rows of jane')
    await untilTitles(phone)
    assert.equal(phone.status.getSnapshot().outbox.waiting, 0)
    assert.deepEqual(await phone.login(bob), { ok: true })
    await untilTitles(phone, 'of bob', 'unsent')
    await untilStatus(phone, ({ outbox }) => outbox.waiting === 0, 'an empty outbox')
    assert.deepEqual(
      await engine.sql(
        `SELECT title, username FROM tenant_demo.tasks JOIN tenant_demo.users u ON u.id = owner_id ORDER BY 1`,
      ),
      ['of bob|bob', 'unsent|bob'],
    )
  })

  test('messages are created, edited, read and deleted', async () => {
    const [web, phone] = [await signedIn(), open()]
    assert.deepEqual(await phone.enroll(await engine.enrollment('joe')), { ok: true })
    const sent = web.messages.create({ recipient_id: phone.userId!, content: 'hello' })
    await applied(sent.server)
    const inbox = phone.messages.query({ where: { id: sent.id } })
    await until(inbox, () => inbox.getSnapshot().rows.some(({ id }) => id === sent.id), 'the message')
    await applied(phone.messages.read(sent.id).server)
    const outbox = web.messages.query({ where: { id: sent.id } })
    await until(outbox, () => outbox.getSnapshot().rows[0]?.read_at != null, 'the receipt')
    // A receipt is no edit: this is no conflict.
    assert.equal((await web.messages.edit(sent.id, { content: 'hello again' }).server).status, 'applied')
    await until(inbox, () => inbox.getSnapshot().rows[0]?.content === 'hello again', 'the edit')
    await applied(web.messages.delete(sent.id).server)
    await until(inbox, () => inbox.getSnapshot().rows.length === 0, 'the deletion')
  })

  test('presence shows who is there', async () => {
    const phone = await signedIn({ presence: true })
    const other = await signedIn({ presence: true }, jane)
    await until(phone.presence, () => phone.presence.getSnapshot().get(other.userId!) === 'online', 'jane online')
  })

  test('wipe deletes everything, or everything but the outbox', async () => {
    const phone = await signedIn()
    await applied(phone.tasks.create({ title: 'stored' }).server)
    proxy.fault = (_method, path) => (path.startsWith('/api/sync/outgoing') ? 'lose request' : 'pass')
    await phone.tasks.create({ title: 'unsent' }).local
    assert.deepEqual(await phone.wipe({ keepOutbox: true }), { ok: true })
    await untilTitles(phone, 'unsent')
    proxy.fault = () => 'pass'
    assert.deepEqual(await phone.login(bob), { ok: true })
    await untilTitles(phone, 'stored', 'unsent')
    const write = phone.tasks.create({ title: 'never' })
    await write.local
    assert.deepEqual(await phone.wipe(), { ok: true })
    assert.ok(['unknown', 'applied'].includes((await write.server).status))
    await untilTitles(phone)
    assert.equal(phone.status.getSnapshot().state, 'unenrolled')
    assert.equal(phone.userId, null)
  })
})
