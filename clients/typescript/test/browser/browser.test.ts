import assert from 'node:assert/strict'
import { after, afterEach, before, beforeEach, describe, test } from 'node:test'
import type { Browser, Page } from 'playwright-core'
import { Engine } from '../engine/engine.js'
import { bundle, launch, Site, type Scripts } from './harness.js'

let engine: Engine
let browser: Browser
let app: Scripts
let site: Site

const bob = { username: 'bob', password: 'posduif-demo', tenant: 'demo' }

before(async () => {
  // First: if it does not start, no browser is left behind.
  engine = await Engine.start()
  ;[browser, app] = await Promise.all([launch(), bundle()])
})
after(async () => {
  await browser?.close()
  await engine?.stop()
})
beforeEach(async () => {
  await engine.sql('DELETE FROM tenant_demo.tasks')
  site = await Site.open(browser, engine.url, app)
})
afterEach(() => site.close())

async function signedIn(query = ''): Promise<Page> {
  const tab = await site.tab(query)
  assert.deepEqual(await tab.evaluate((login) => page.client.login(login), bob), { ok: true })
  await tab.waitForFunction(() => page.status().upToDate)
  return tab
}

async function shows(tab: Page, titles: string[]): Promise<void> {
  await tab.waitForFunction((wanted) => JSON.stringify(page.titles()) === JSON.stringify(wanted), titles)
}

async function insert(title: string): Promise<void> {
  await engine.sql(
    `INSERT INTO tenant_demo.tasks (owner_id, title) SELECT id, '${title}' FROM tenant_demo.users WHERE username = 'bob'`,
  )
}

describe('in a browser', () => {
  test('three tabs hold one stream, and each shows what any of them writes', async () => {
    const first = await signedIn()
    const tabs = [first, await site.tab(), await site.tab()]
    await insert('from Postgres')
    for (const tab of tabs) await shows(tab, ['from Postgres'])
    for (const [place, tab] of tabs.entries()) {
      assert.equal(await tab.evaluate((title) => page.addAndWait(title), `tab ${place}`), 'applied')
    }
    for (const tab of tabs) await shows(tab, ['from Postgres', 'tab 0', 'tab 1', 'tab 2'])
    assert.equal(site.proxy.streams, 1)
    const leaders = await Promise.all(tabs.map((tab) => tab.evaluate(() => page.status().leader)))
    assert.deepEqual(leaders, [true, false, false])
    // The status is the same in all tabs.
    for (const tab of tabs) await tab.waitForFunction(() => page.status().live === 'sse' && page.status().upToDate)
  })

  test('leader that is closed is replaced', async () => {
    const first = await signedIn()
    const others = [await site.tab(), await site.tab()]
    await first.close()
    await Promise.race(others.map((tab) => tab.waitForFunction(() => page.status().leader)))
    await insert('after')
    for (const tab of others) await shows(tab, ['after'])
    assert.equal(await others[0]!.evaluate(() => page.addAndWait('own')), 'applied')
  })

  test('leader that crashes is replaced, and its unsent changes arrive', async () => {
    const first = await signedIn()
    const other = await site.tab()
    site.proxy.fault = (_method, path) => (path.startsWith('/api/sync/outgoing') ? 'lose request' : 'pass')
    assert.equal(await first.evaluate(() => page.add(['unsent'])), true)
    const session = await site.context.newCDPSession(first)
    // The process ends before it answers.
    session.send('Page.crash').catch(() => {})
    await other.waitForFunction(() => page.status().leader)
    site.proxy.fault = () => 'pass'
    await other.evaluate(() => page.client.sync())
    await other.waitForFunction(() => page.status().outbox.waiting === 0)
    assert.deepEqual(await engine.sql('SELECT title FROM tenant_demo.tasks'), ['unsent'])
  })

  test('leader that is stopped loses the lead, and writes nothing when it continues', async () => {
    const processes = async () => {
      const cdp = await browser.newBrowserCDPSession()
      const { processInfo } = await cdp.send('SystemInfo.getProcessInfo')
      return processInfo.filter(({ type }) => type === 'renderer').map(({ id }) => id)
    }
    const before = new Set(await processes())
    const first = await signedIn()
    const [stopped] = (await processes()).filter((id) => !before.has(id))
    assert.ok(stopped, 'the page has no process of its own')
    const between = new Set(await processes())
    const other = await site.tab()
    // Pages of one site may share a process, and then stopping one stops both.
    assert.ok(
      (await processes()).some((id) => !between.has(id)),
      'both pages share a process',
    )
    const ticks = await first.evaluate(() => page.ticks())
    process.kill(stopped, 'SIGSTOP')
    try {
      await other.waitForFunction(() => page.status().leader, null, { timeout: 30_000 })
      await insert('while stopped')
      await shows(other, ['while stopped'])
      assert.equal(await other.evaluate(() => page.addAndWait('written')), 'applied')
    } finally {
      process.kill(stopped, 'SIGCONT')
    }
    await shows(first, ['while stopped', 'written'])
    await first.waitForFunction((least) => page.ticks() > least, ticks)
    await first.waitForFunction(() => !page.status().leader)
    assert.equal(await first.evaluate(() => page.addAndWait('continued')), 'applied')
    await shows(other, ['continued', 'while stopped', 'written'])
    // And it can lead again.
    await other.close()
    await first.waitForFunction(() => page.status().leader)
    assert.equal(await first.evaluate(() => page.addAndWait('led again')), 'applied')
  })

  test('thousand changes made offline survive a reload and arrive once each', async () => {
    const tab = await signedIn()
    site.proxy.fault = (_method, path) => (path.startsWith('/api') || path.startsWith('/sse') ? 'lose request' : 'pass')
    const titles = Array.from({ length: 1000 }, (_, n) => `task ${String(n).padStart(4, '0')}`)
    assert.equal(await tab.evaluate((list) => page.add(list.slice(0, 500)), titles), true)
    await tab.reload()
    await tab.waitForFunction(() => 'page' in globalThis && page.titles().length === 500)
    assert.equal(await tab.evaluate((list) => page.add(list.slice(500)), titles), true)
    await tab.reload()
    let count = 0
    // Of the first answers, some are lost.
    site.proxy.fault = (_method, path) =>
      path.startsWith('/api/sync/outgoing') && ++count % 2 === 1 && count < 6 ? 'lose answer' : 'pass'
    await tab.waitForFunction(() => 'page' in globalThis && page.titles().length === 1000)
    await tab.waitForFunction(() => page.status().outbox.waiting === 0, null, { timeout: 60_000 })
    assert.deepEqual(await engine.sql('SELECT count(*), count(DISTINCT title), max(version) FROM tenant_demo.tasks'), [
      '1000|1000|1',
    ])
    await shows(tab, titles)
    assert.deepEqual(await tab.evaluate(() => page.events), [])
  })

  test('revoked device is signed out in all tabs, and a login in any of them continues', async () => {
    const tabs = [await signedIn(), await site.tab()]
    await tabs[0]!.evaluate(() => page.addAndWait('before'))
    await engine.revoke('bob')
    for (const tab of tabs)
      await tab.waitForFunction(() => page.status().state === 'unenrolled' && page.events.includes('signedOut'))
    assert.equal(await tabs[1]!.evaluate(() => page.add(['during'])), true)
    for (const tab of tabs) await shows(tab, ['before', 'during'])
    assert.deepEqual(await tabs[1]!.evaluate((login) => page.client.login(login), bob), { ok: true })
    for (const tab of tabs)
      await tab.waitForFunction(() => page.status().upToDate && page.status().outbox.waiting === 0)
    assert.deepEqual(await engine.sql('SELECT title FROM tenant_demo.tasks ORDER BY 1'), ['before', 'during'])
  })

  test('reset while all tabs are offline with a full outbox loses no change', async () => {
    const tab = await signedIn()
    await tab.evaluate(() => page.addAndWait('known'))
    site.proxy.down()
    await tab.waitForFunction(() => page.status().live === 'connecting')
    await tab.evaluate(() => page.add(Array.from({ length: 600 }, (_, n) => `offline ${n}`)))
    await engine.resync()
    site.proxy.up()
    await tab.waitForFunction(
      () => page.events.includes('reset') && page.status().outbox.waiting === 0 && page.status().upToDate,
      null,
      {
        timeout: 60_000,
      },
    )
    assert.equal(await tab.evaluate(() => page.titles().length), 601)
    assert.deepEqual(await engine.sql('SELECT count(*), count(DISTINCT title) FROM tenant_demo.tasks'), ['601|601'])
  })

  test('newer build in another tab closes the storage and is reported', async () => {
    const tab = await signedIn()
    const other = await site.context.newPage()
    await other.goto(`${site.proxy.url}/app.js`)
    await other.evaluate(
      () =>
        new Promise<void>((resolve, reject) => {
          const request = indexedDB.open('app', 99)
          request.onsuccess = () => resolve()
          request.onerror = () => reject(request.error)
        }),
    )
    await tab.waitForFunction(() => page.events.includes('outdated'))
  })

  test('websocket carries the events of a page', async () => {
    const tab = await signedIn('?live=websocket')
    await tab.waitForFunction(() => page.status().live === 'websocket')
    await insert('by websocket')
    await shows(tab, ['by websocket'])
    assert.equal(site.proxy.streams, 1)
  })

  test('page on a websocket goes on when the server has lost its numbers, or the page has', async () => {
    const tab = await signedIn('?live=websocket')
    await tab.waitForFunction(() => page.status().live === 'websocket')
    for (const title of ['1', '2']) assert.equal(await tab.evaluate((t) => page.addAndWait(t), title), 'applied')
    const uploads = () => site.proxy.count('POST', '/api/sync/outgoing')
    let before = uploads()
    // SEQUENCE_GAP.
    await engine.sql('DELETE FROM posduif.upload_devices')
    assert.equal(await tab.evaluate(() => page.addAndWait('3')), 'applied')
    assert.ok(uploads() - before >= 2, 'there was no gap')
    // DEVICE_RESTORED: the storage of before the next change.
    const copy = await tab.evaluate(() => page.device())
    assert.equal(await tab.evaluate(() => page.addAndWait('4')), 'applied')
    await tab.waitForFunction(() => page.status().upToDate && page.status().outbox.waiting === 0)
    // What still runs would store the newer record again.
    await tab.evaluate(async (device) => {
      page.client.close()
      await page.idle()
      await page.restore(device)
    }, copy)
    await tab.reload()
    await tab.waitForFunction(() => 'page' in globalThis && page.status().live === 'websocket')
    before = uploads()
    assert.equal(await tab.evaluate(() => page.addAndWait('5')), 'applied')
    assert.ok(uploads() - before >= 2, 'the numbers were not known')
    await tab.waitForFunction(() => page.status().upToDate && page.status().error === null)
    await shows(tab, ['1', '2', '3', '4', '5'])
    assert.deepEqual(await engine.sql('SELECT title FROM tenant_demo.tasks ORDER BY 1'), ['1', '2', '3', '4', '5'])
  })

  test('conflict without a decision is reported again after a reload, in all tabs, and any of them decides it', async () => {
    const tab = await signedIn()
    const id = await tab.evaluate(async () => {
      const write = page.client.tasks.create({ title: 'base' })
      await write.server
      return write.id
    })
    const rule = (_method: string, path: string) => (/^\/(api|sse)/.test(path) ? 'lose request' : 'pass')
    site.proxy.fault = rule
    await tab.evaluate((row) => page.client.tasks.edit(row, { title: 'late' }).local, id)
    await engine.sql("UPDATE tenant_demo.tasks SET title = 'first', version = version + 1")
    site.proxy.fault = () => 'pass'
    await tab.evaluate(() => void page.client.sync())
    await tab.waitForFunction(() => page.events.includes('conflict'))
    await tab.reload()
    const other = await site.tab()
    for (const each of [tab, other]) {
      await each.waitForFunction(() => 'page' in globalThis && page.events.includes('conflict'))
      assert.deepEqual(await each.evaluate(() => page.events), ['conflict'])
    }
    const follower = (await tab.evaluate(() => page.status().leader)) ? other : tab
    assert.deepEqual(await follower.evaluate(() => page.decide('server')), { ok: true })
    for (const each of [tab, other]) await each.waitForFunction(() => page.status().outbox.conflicts === 0)
    assert.deepEqual(await follower.evaluate(() => page.client.sync()), { ok: true })
    const open = 'SELECT count(*) FROM tenant_demo.message_conflicts WHERE resolved_at IS NULL'
    while ((await engine.sql(open))[0] !== '0') await tab.waitForFunction(() => page.status().upToDate)
  })

  test('React components show rows and status as they change', async () => {
    const tab = await signedIn()
    await insert('milk')
    const item = tab.locator('li')
    await item.filter({ hasText: 'milk' }).waitFor()
    await tab.evaluate(() => page.add(['bread']))
    await item.first().filter({ hasText: 'bread' }).waitFor()
    await tab.getByRole('button', { name: 'Add', exact: true }).click()
    await tab
      .getByRole('status')
      .filter({ hasText: /^done$/ })
      .waitFor()
    await tab.getByRole('button', { name: 'Add nothing' }).click()
    await tab
      .getByRole('status')
      .filter({ hasText: /^failed VALIDATION_ERROR$/ })
      .waitFor()
    assert.deepEqual(await item.allTextContents(), ['bread', 'by button', 'milk'])
    assert.equal(await tab.locator('output[data-phase=ready][data-state=stream][data-leader=true]').count(), 1)
  })

  test('page that goes into the cache and returns continues', async () => {
    const tab = await signedIn()
    await tab.goto(`${site.proxy.url}/app.js`)
    await insert('meanwhile')
    await tab.goBack()
    await tab.waitForFunction(() => 'page' in globalThis)
    await shows(tab, ['meanwhile'])
  })

  test('page shows its rows and keeps changes while the part that syncs cannot be loaded', async () => {
    const first = await signedIn()
    assert.equal(await first.evaluate(() => page.addAndWait('stored')), 'applied')
    await first.close()
    // A page of a former deployment: the file is no longer there.
    const part = /\/sync-\w+\.js$/
    await site.context.route(part, (route) => route.fulfill({ status: 404, body: 'not found' }))
    const tab = await site.tab()
    await shows(tab, ['stored'])
    await tab.waitForFunction(() => page.status().error?.code === 'LOCAL_LOAD_FAILED')
    assert.equal(await tab.evaluate(() => page.add(['offline'])), true)
    const outcome = await tab.evaluate(() => page.client.sync())
    assert.ok(!outcome.ok && outcome.code === 'LOCAL_LOAD_FAILED', JSON.stringify(outcome))
    await shows(tab, ['offline', 'stored'])
    assert.equal(await tab.evaluate(() => page.status().outbox.waiting), 1)
    assert.deepEqual(await engine.sql('SELECT title FROM tenant_demo.tasks'), ['stored'])
    // Another tab, of the new deployment, sends the change; the former one follows it.
    await site.context.unroute(part)
    const newer = await site.tab()
    await newer.waitForFunction(() => page.status().leader && page.status().outbox.waiting === 0)
    await shows(tab, ['offline', 'stored'])
    assert.deepEqual(await engine.sql('SELECT title FROM tenant_demo.tasks ORDER BY 1'), ['offline', 'stored'])
    await newer.close()
    await tab.reload()
    await tab.waitForFunction(() => 'page' in globalThis && page.status().live === 'sse')
    assert.equal(await tab.evaluate(() => page.status().error), null)
  })

  test('part that syncs is loaded when the network returns, without a reload', async () => {
    await (await signedIn()).close()
    const part = /\/sync-\w+\.js$/
    await site.context.route(part, (route) => route.abort())
    const tab = await site.tab()
    await tab.waitForFunction(() => page.status().error?.code === 'LOCAL_LOAD_FAILED')
    assert.equal(await tab.evaluate(() => page.add(['offline'])), true)
    await site.context.unroute(part)
    await tab.evaluate(() => void dispatchEvent(new Event('online')))
    await tab.waitForFunction(() => page.status().upToDate && page.status().outbox.waiting === 0)
    assert.equal(await tab.evaluate(() => page.status().error), null)
    assert.deepEqual(await engine.sql('SELECT title FROM tenant_demo.tasks'), ['offline'])
  })
})
