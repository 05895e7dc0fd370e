import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { after, afterEach, before, beforeEach, describe, test } from 'node:test'
import type { Browser, Page } from 'playwright-core'
import { Engine } from '../engine/engine.js'
import type { DevtoolsPage } from './devtools-app.js'
import { bundle, launch, Site, type Scripts } from './harness.js'

// A strict policy, which a page with the panel must be able to have.
const HTML = `<!doctype html><html lang="en"><meta charset="utf-8">
  <meta http-equiv="Content-Security-Policy"
    content="default-src 'none'; script-src 'self'; connect-src 'self'; require-trusted-types-for 'script'">
  <title>Tasks</title><main id="root"><h1>Tasks</h1></main><script type="module" src="/app.js"></script></html>`

const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8')

const bob = { username: 'bob', password: 'posduif-demo', tenant: 'demo' }

let engine: Engine
let browser: Browser
let app: Scripts
let site: Site

before(async () => {
  engine = await Engine.start()
  ;[browser, app] = await Promise.all([launch(), bundle('devtools-app.ts')])
})
after(async () => {
  await browser?.close()
  await engine?.stop()
})
beforeEach(async () => {
  await engine.sql('DELETE FROM tenant_demo.tasks; DELETE FROM tenant_demo.message_conflicts')
  site = await Site.open(browser, engine.url, app, HTML)
})
afterEach(() => site.close())

/** What is on `window` here is the page of the devtools. */
function run<Result>(tab: Page, job: (page: DevtoolsPage) => Result | Promise<Result>): Promise<Result> {
  return tab.evaluate(`(${job})(page)`) as Promise<Result>
}

function until(tab: Page, holds: (page: DevtoolsPage) => boolean): Promise<unknown> {
  return tab.evaluate(`page.until(() => (${holds})(page))`)
}

async function opened(at: string): Promise<Page> {
  const tab = await site.tab()
  await tab.evaluate((login) => page.client.login(login), bob)
  await until(tab, ({ status }) => status().upToDate && status().live === 'sse')
  await tab.getByRole('button', { name: 'Posduif devtools' }).click()
  await tab.getByRole('tab', { name: at }).click()
  return tab
}

async function violations(tab: Page): Promise<string[]> {
  await tab.evaluate(axe)
  return tab.evaluate(async () => {
    type Found = { violations: { id: string; nodes: { html: string }[] }[] }
    const { axe } = globalThis as unknown as { axe: { run(): Promise<Found> } }
    const { violations } = await axe.run()
    return violations.map((one) => `${one.id}: ${one.nodes.map((node) => node.html).join(' ')}`)
  })
}

const fault = (tab: Page, name: RegExp) => tab.getByRole('checkbox', { name })

describe('devtools', () => {
  test('table browser shows the rows as they change, those that wait, and what the filter leaves', async () => {
    const tab = await opened('Tables')
    await tab.getByRole('combobox', { name: 'Table' }).selectOption('tasks')
    await run(tab, ({ client }) => client.tasks.create({ title: 'milk' }).server)
    const row = tab.getByRole('row', { name: 'milk' })
    await row.waitFor()
    site.proxy.fault = (_method, path) => (path.startsWith('/api') ? 'lose request' : 'pass')
    await run(tab, ({ client }) => client.tasks.create({ title: '<img src=x onerror=alert(1)>' }).local)
    await tab.getByRole('row', { name: /^waiting .*<img/ }).waitFor()
    await tab.getByLabel('Filter').fill('IMG')
    await row.waitFor({ state: 'detached' })
    await tab.getByText('1 of 2 rows, ready').waitFor()
  })

  test('outbox shows why a change was refused, and its buttons decide with the keyboard', async () => {
    const tab = await opened('Outbox')
    await run(tab, async ({ client }) => {
      await client.tasks.create({ title: '' }).server
      await client.tasks.create({ title: '' }).server
    })
    const rejected = tab.getByRole('row', { name: /^rejected .*VALIDATION_ERROR/ })
    await rejected.nth(1).waitFor()
    await rejected.first().getByRole('button', { name: /^Discard create of tasks/ }).focus()
    await tab.keyboard.press('Enter')
    await tab.getByText(/^Discard: create of tasks .*: done$/).waitFor()
    await rejected.nth(1).waitFor({ state: 'detached' })
    // The row is gone, and the keyboard is still in the list.
    const isInside = () => tab.evaluate(() => document.activeElement?.shadowRoot?.activeElement?.className === 'scroll')
    assert.equal(await isInside(), true)
    await rejected.getByRole('button', { name: /^Retry/ }).click()
    await tab.getByText(/^Retry: create of tasks .*: done$/).waitFor()
    await until(tab, ({ status }) => status().outbox.rejected === 1 && status().outbox.waiting === 0)
    await rejected.waitFor()
  })

  test('offline breaks the stream and keeps changes until it is switched off', async () => {
    const tab = await opened('Faults')
    await fault(tab, /^Offline/).check()
    await until(tab, ({ status }) => status().live === 'connecting')
    await run(tab, ({ client }) => client.tasks.create({ title: 'offline' }).local)
    assert.deepEqual(await engine.sql('SELECT title FROM tenant_demo.tasks'), [])
    await fault(tab, /^Offline/).uncheck()
    await until(tab, ({ status }) => status().upToDate && status().outbox.waiting === 0 && status().live === 'sse')
    assert.deepEqual(await engine.sql('SELECT title FROM tenant_demo.tasks'), ['offline'])
  })

  test('lost answer happens once, and the change is applied once', async () => {
    const tab = await opened('Faults')
    await fault(tab, /^Lose the answer/).check()
    const { status } = await run(tab, ({ client }) => client.tasks.create({ title: 'once' }).server)
    assert.equal(status, 'applied')
    assert.ok(site.proxy.count('POST', '/api/sync/outgoing') >= 2)
    assert.equal(await fault(tab, /^Lose the answer/).isChecked(), false)
    assert.deepEqual(await engine.sql('SELECT title, version FROM tenant_demo.tasks'), ['once|1'])
  })

  test('refused token signs the device out, and keeps its rows', async () => {
    const tab = await opened('Faults')
    await run(tab, ({ client }) => client.tasks.create({ title: 'kept' }).server)
    await fault(tab, /^Refuse the token/).click()
    await until(tab, ({ events, status }) => events.includes('signedOut') && status().state === 'unenrolled')
    assert.equal(await run(tab, async ({ client }) => (await client.tasks.query().get()).length), 1)
    assert.equal(await fault(tab, /^Refuse the token/).isChecked(), false)
  })

  test('refused cursor brings a snapshot', async () => {
    const tab = await opened('Faults')
    await fault(tab, /^Refuse the next cursor/).click()
    await until(tab, ({ events, status }) => events.includes('reset') && status().upToDate)
  })

  test('end of the leader gives the lead to another tab', async () => {
    const tab = await opened('Faults')
    const other = await site.tab()
    await until(other, ({ status }) => status().live === 'sse' && !status().leader)
    await tab.getByRole('button', { name: 'End the leader' }).click()
    await until(other, ({ status }) => status().leader)
    await until(tab, ({ status }) => !status().leader)
  })

  test('log is copied as JSON with states, events, requests, and no token', async () => {
    await site.context.grantPermissions(['clipboard-read', 'clipboard-write'])
    const tab = await opened('Log')
    await run(tab, ({ client }) => client.tasks.create({ title: '' }).server)
    await tab.getByRole('region', { name: /^Log/ }).getByText('"rejected"').waitFor()
    await tab.getByRole('button', { name: 'Copy' }).click()
    await tab.getByText(/^Copied \d+ lines\.$/).waitFor()
    const copied = await tab.evaluate(() => navigator.clipboard.readText())
    const lines = copied.split('\n').map((line) => JSON.parse(line) as { what: string; data: Record<string, unknown> })
    assert.ok(lines.some(({ what, data }) => what === 'status' && data['state'] === 'stream'))
    assert.ok(lines.some(({ what, data }) => what === 'event' && data['name'] === 'rejected'))
    assert.ok(lines.some(({ what, data }) => what === 'request' && data['path'] === '/api/sync/outgoing'))
    assert.doesNotMatch(copied, /Bearer|token|cursor/i)
    await tab.getByRole('button', { name: 'Clear' }).click()
    assert.equal(await tab.getByRole('region', { name: /^Log/ }).textContent(), '')
  })

  for (const colorScheme of ['light', 'dark'] as const)
    test(`all pages are accessible in the ${colorScheme} scheme, and work with the keyboard`, async () => {
      const tab = await opened('Tables')
      await tab.emulateMedia({ colorScheme })
      await run(tab, async ({ client }) => {
        await client.tasks.create({ title: 'milk' }).server
        await client.tasks.create({ title: '' }).server
      })
      await tab.getByRole('combobox', { name: 'Table' }).selectOption('tasks')
      await tab.getByRole('row', { name: 'milk' }).waitFor()
      await tab.getByRole('tab', { name: 'Tables' }).focus()
      for (const name of ['Tables', 'Outbox', 'Log', 'Faults']) {
        assert.equal(await tab.getByRole('tab', { name, selected: true }).count(), 1, name)
        assert.deepEqual(await violations(tab), [], name)
        await tab.keyboard.press('ArrowRight')
      }
      assert.equal(await tab.getByRole('tab', { name: 'Tables', selected: true }).count(), 1)
      await tab.keyboard.press('End')
      await tab.keyboard.press('Tab')
      await tab.keyboard.press('Space')
      assert.equal(await fault(tab, /^Offline/).isChecked(), true)
      await tab.keyboard.press('Escape')
      const toggle = tab.getByRole('button', { name: 'Posduif devtools' })
      await toggle.waitFor()
      assert.equal(await tab.getByRole('tablist').count(), 0)
      await tab.keyboard.press('Enter')
      await tab.getByRole('tablist').waitFor()
      await run(tab, ({ unmount }) => unmount())
      assert.equal(await toggle.count(), 0)
    })
})
