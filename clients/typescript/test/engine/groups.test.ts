// Rows that are shared by membership, with the configuration of docs/own-tables.md.
import assert from 'node:assert/strict'
import { after, afterEach, before, beforeEach, describe, test } from 'node:test'
import { createClient, table, type Client } from '../../src/index.js'
import { memory } from '../../src/memory/index.js'
import { Engine } from './engine.js'
import { Proxy } from './proxy.js'
import { bob, fastClock, jane, until, untilStatus } from './support.js'

const CONFIG = `
groups:
  list: {table: list_members, id: list_id, user: user_id}
routes:
  - {table: lists, to: [{list: id}]}
  - table: tasks
    to: [{list: list_id}, {list: also_in}, assignee_id]
    upload: {by: {list: list_id}, columns: [title, done, list_id]}
limits:
  login_attempts_max: 1000
`

const TABLES = `
  CREATE TABLE tenant_demo.lists (id text PRIMARY KEY, name text NOT NULL);
  CREATE TABLE tenant_demo.list_members (
    list_id text NOT NULL REFERENCES tenant_demo.lists,
    user_id uuid NOT NULL REFERENCES tenant_demo.users,
    PRIMARY KEY (list_id, user_id)
  );
  CREATE TABLE tenant_demo.tasks (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    list_id     text NOT NULL REFERENCES tenant_demo.lists,
    also_in     text REFERENCES tenant_demo.lists,
    assignee_id uuid REFERENCES tenant_demo.users,
    title       text NOT NULL,
    done        boolean NOT NULL DEFAULT false,
    version     bigint NOT NULL DEFAULT 1
  );
  INSERT INTO tenant_demo.lists VALUES ('home', 'At home'), ('work', 'At work');
`

type Task = { readonly id: string; readonly title: string; readonly list_id: string; readonly version: number }

const tables = { tasks: table<Task>(), lists: table<{ readonly id: string; readonly name: string }>() }

type Phone = Client<typeof tables>

let engine: Engine
let proxy: Proxy
let phones: Phone[] = []

before(async () => {
  engine = await Engine.start(CONFIG, TABLES)
})
after(() => engine?.stop())
beforeEach(async () => {
  proxy = await Proxy.start(engine.url)
  phones = []
  await engine.sql('DELETE FROM tenant_demo.tasks; DELETE FROM tenant_demo.list_members')
})
afterEach(async () => {
  for (const each of phones) each.close()
  await proxy.stop()
})

async function signedIn(login: typeof bob): Promise<Phone> {
  const phone = createClient({ url: proxy.url, store: memory(), tables, environment: { clock: fastClock } })
  phones.push(phone)
  assert.deepEqual(await phone.login(login), { ok: true })
  assert.equal(await phone.firstSync, true)
  return phone
}

const idOf = (username: string) => `(SELECT id FROM tenant_demo.users WHERE username = '${username}')`

async function join(username: string, list: string): Promise<void> {
  await engine.sql(`INSERT INTO tenant_demo.list_members VALUES ('${list}', ${idOf(username)})`)
}

async function leave(username: string, list: string): Promise<void> {
  await engine.sql(
    `DELETE FROM tenant_demo.list_members WHERE list_id = '${list}' AND user_id = ${idOf(username)}`,
  )
}

async function addTask(title: string, list: string, assignee: string | null = null): Promise<void> {
  const id = assignee === null ? 'NULL' : idOf(assignee)
  await engine.sql(
    `INSERT INTO tenant_demo.tasks (title, list_id, assignee_id) VALUES ('${title}', '${list}', ${id})`,
  )
}

async function untilTitles(phone: Phone, ...titles: string[]): Promise<void> {
  const query = phone.tasks.query({ orderBy: 'title' })
  // A query that has not been read yet shows nothing.
  const shown = () => {
    const { rows, phase } = query.getSnapshot()
    return phase === 'loading' ? null : rows.map(({ title }) => title)
  }
  await until(query, () => JSON.stringify(shown()) === JSON.stringify(titles), `the titles ${titles.join(', ')}`)
}

async function listsOf(phone: Phone): Promise<string[]> {
  return (await phone.lists.query({ orderBy: 'id' }).get()).map(({ id }) => id)
}

function next(phone: Phone, name: 'joined' | 'left'): Promise<unknown> {
  return new Promise((resolve) => phone.on(name, resolve))
}

describe('groups', () => {
  test('join brings the rows of before, and leave removes them and no others', async () => {
    await addTask('milk', 'home')
    await addTask('report', 'work')
    await addTask('slides for bob', 'work', 'bob')
    const phone = await signedIn(bob)
    await untilTitles(phone, 'slides for bob')
    assert.deepEqual(await listsOf(phone), [])
    const [joined, left] = [next(phone, 'joined'), next(phone, 'left')]
    await join('bob', 'home')
    assert.deepEqual(await joined, { group: 'list', id: 'home' })
    await untilTitles(phone, 'milk', 'slides for bob')
    assert.deepEqual(await listsOf(phone), ['home'])
    await addTask('bread', 'home')
    await untilTitles(phone, 'bread', 'milk', 'slides for bob')
    await leave('bob', 'home')
    assert.deepEqual(await left, { group: 'list', id: 'home' })
    await untilTitles(phone, 'slides for bob')
    assert.deepEqual(await listsOf(phone), [])
  })

  test('row that moves between lists goes from the members of one to those of the other', async () => {
    await join('bob', 'home')
    await join('jane', 'work')
    await addTask('milk', 'home')
    const [first, second] = [await signedIn(bob), await signedIn(jane)]
    await untilTitles(first, 'milk')
    await untilTitles(second)
    await engine.sql(`UPDATE tenant_demo.tasks SET list_id = 'work'`)
    await untilTitles(second, 'milk')
    await untilTitles(first)
    // A member of both keeps it.
    await join('bob', 'work')
    await untilTitles(first, 'milk')
    await engine.sql(`UPDATE tenant_demo.tasks SET list_id = 'home', title = 'oat milk'`)
    await untilTitles(first, 'oat milk')
    await untilTitles(second)
    await leave('bob', 'work')
    await addTask('bread', 'home')
    await untilTitles(first, 'bread', 'oat milk')
  })

  test('row that left a list before the user joined it goes with the other list', async () => {
    await join('bob', 'home')
    await addTask('milk', 'home')
    await engine.sql("UPDATE tenant_demo.tasks SET also_in = 'work', version = version + 1")
    const phone = await signedIn(bob)
    await untilTitles(phone, 'milk')
    proxy.fault = (_method, path) => (path.startsWith('/sse') || path.startsWith('/api/sync') ? 'lose request' : 'pass')
    proxy.cut()
    await engine.sql('UPDATE tenant_demo.tasks SET also_in = NULL, version = version + 1')
    await join('bob', 'work')
    await leave('bob', 'home')
    const left = next(phone, 'left')
    proxy.fault = () => 'pass'
    await phone.sync()
    await left
    await untilStatus(phone, ({ upToDate }) => upToDate, 'the last batch')
    assert.deepEqual(await listsOf(phone), ['work'])
    await untilTitles(phone)
  })

  test('member writes rows of the own lists, and into no other list', async () => {
    await join('bob', 'home')
    await join('jane', 'home')
    const [first, second] = [await signedIn(bob), await signedIn(jane)]
    const write = first.tasks.create({ title: 'milk', list_id: 'home' })
    assert.equal((await write.server).status, 'applied')
    await untilTitles(second, 'milk')
    assert.equal((await second.tasks.edit(write.id, { title: 'oat milk' }).server).status, 'applied')
    await untilTitles(first, 'oat milk')
    const others = first.tasks.create({ title: 'report', list_id: 'work' })
    const refused = await others.server
    assert.deepEqual([refused.status, refused.code], ['rejected', 'FORBIDDEN'])
    const moved = await first.tasks.edit(write.id, { list_id: 'work' }).server
    assert.deepEqual([moved.status, moved.code], ['rejected', 'FORBIDDEN'])
    await untilTitles(first, 'oat milk')
    assert.deepEqual(await engine.sql('SELECT title, list_id, version FROM tenant_demo.tasks'), ['oat milk|home|2'])
  })

  test('row whose upload was not answered before the membership ended does not stay', async () => {
    await join('bob', 'home')
    const phone = await signedIn(bob)
    await untilStatus(phone, ({ upToDate }) => upToDate, 'an idle device')
    const isUpload = (path: string) => path.startsWith('/api/sync/outgoing')
    // Batches wait as well: the membership ends before the device reads its own row.
    let uploads = 0
    const lost = new Promise<void>((resolve) => {
      proxy.fault = (_method, path) => {
        if (!path.startsWith('/api/sync/')) return 'pass'
        if (uploads > 0) resolve()
        return isUpload(path) && uploads++ === 0 ? 'lose answer' : 'lose request'
      }
    })
    const write = phone.tasks.create({ title: 'milk', list_id: 'home' })
    await lost
    assert.deepEqual(await engine.sql('SELECT title FROM tenant_demo.tasks'), ['milk'])
    const left = next(phone, 'left')
    await leave('bob', 'home')
    proxy.fault = (_method, path) => (isUpload(path) ? 'lose request' : 'pass')
    await left
    proxy.fault = () => 'pass'
    assert.equal((await write.server).status, 'applied')
    await untilTitles(phone)
    await phone.sync()
    await untilTitles(phone)
  })

  test('reset while the device is offline ends with the lists of now', async () => {
    await join('bob', 'home')
    await addTask('milk', 'home')
    await addTask('report', 'work')
    const phone = await signedIn(bob)
    await untilTitles(phone, 'milk')
    proxy.down()
    await untilStatus(phone, ({ live }) => live === 'connecting', 'a broken stream')
    await leave('bob', 'home')
    await join('bob', 'work')
    await engine.resync()
    const changes = [next(phone, 'left'), next(phone, 'joined')]
    proxy.up()
    assert.deepEqual(await Promise.all(changes), [
      { group: 'list', id: 'home' },
      { group: 'list', id: 'work' },
    ])
    await untilTitles(phone, 'report')
    assert.deepEqual(await listsOf(phone), ['work'])
  })
})
