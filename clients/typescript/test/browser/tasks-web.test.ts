// The example, as it is built for users, on the tables of `posduif dev`.
import assert from 'node:assert/strict'
import { existsSync, mkdirSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { extname, join } from 'node:path'
import { after, afterEach, before, beforeEach, describe, test } from 'node:test'
import type { Browser, Page } from 'playwright-core'
import { Engine } from '../engine/engine.js'
import { folder, launch, Site } from './harness.js'

const dist = join(folder, '../../examples/tasks-web/dist')

const TYPES: Record<string, string> = {
  '.html': 'text/html',
  '.js': 'text/javascript',
  '.css': 'text/css',
  '.svg': 'image/svg+xml',
}

const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8')

let engine: Engine
let browser: Browser
let site: Site
/** Requests to other hosts. */
let others: string[]

before(async () => {
  assert.ok(existsSync(join(dist, 'index.html')), 'the example is not built: run scripts/client --browser')
  // Without routes of its own, the system has those of the demo.
  engine = await Engine.start('limits:\n  login_attempts_max: 1000\n', 'SELECT 1')
  browser = await launch()
})
after(async () => {
  await browser?.close()
  await engine?.stop()
})
beforeEach(async () => {
  await engine.sql(`DELETE FROM tenant_demo.tasks; DELETE FROM tenant_demo.message_conflicts;
    INSERT INTO tenant_demo.tasks (list_id, title) SELECT id, 'Buy bread' FROM tenant_demo.lists`)
  site = await Site.open(browser, engine.url, new Map())
  site.proxy.files = (path) => {
    const file = join(dist, path === '/' ? 'index.html' : path)
    if (!file.startsWith(dist) || !existsSync(file)) return null
    return { type: TYPES[extname(file)]!, body: readFileSync(file) }
  }
  others = []
  site.context.on('request', (request) => {
    if (!request.url().startsWith(site.proxy.url)) others.push(request.url())
  })
})
afterEach(async () => {
  await site.close()
  assert.deepEqual(others, [])
})

const item = (tab: Page, title: string) => tab.getByRole('listitem').filter({ hasText: title })

async function signedIn(): Promise<Page> {
  const tab = await site.page()
  await tab.getByLabel('Password').fill('posduif-demo')
  await tab.getByRole('button', { name: 'Sign in' }).click()
  await item(tab, 'Buy bread').waitFor()
  await tab.getByText('Up to date').waitFor()
  return tab
}

async function add(tab: Page, title: string): Promise<void> {
  await tab.getByLabel('New task').fill(title)
  await tab.keyboard.press('Enter')
  await item(tab, title).waitFor()
}

async function tick(tab: Page, title: string): Promise<void> {
  const box = tab.getByRole('checkbox', { name: title })
  // It shows what is stored, which is a moment later.
  await box.click()
  await tab.getByRole('checkbox', { name: title, checked: true }).waitFor()
}

async function rename(tab: Page, from: string, to: string): Promise<void> {
  await tab.getByRole('button', { name: `Edit ${from}` }).click()
  await tab.getByRole('textbox', { name: `Title of ${from}` }).fill(to)
  await tab.keyboard.press('Enter')
  await item(tab, to).waitFor()
}

async function titles(): Promise<string[]> {
  return engine.sql('SELECT title FROM tenant_demo.tasks WHERE deleted_at IS NULL ORDER BY 1')
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

/** A conflict and a change that waits, in a tab without a network. */
async function conflicted(tab: Page): Promise<void> {
  site.proxy.fault = (_method, path) => (/^\/(api|sse|ws)\b/.test(path) ? 'lose request' : 'pass')
  await rename(tab, 'Buy bread', 'Buy rye bread')
  await engine.sql(`UPDATE tenant_demo.tasks SET title = 'Buy white bread' WHERE title = 'Buy bread'`)
  site.proxy.fault = () => 'pass'
  await tab.getByRole('button', { name: 'Sync' }).click()
  await tab.getByRole('group', { name: 'Conflict' }).waitFor()
}

describe('tasks on the web', () => {
  test('wrong password is explained, and the right one shows the list and its members', async () => {
    const tab = await site.page()
    await tab.getByLabel('Password').fill('wrong')
    await tab.getByRole('button', { name: 'Sign in' }).click()
    await tab.getByRole('alert').waitFor()
    await tab.getByLabel('Password').fill('posduif-demo')
    await tab.getByRole('button', { name: 'Sign in' }).click()
    await tab.getByText('Shared by bob, joe').waitFor()
    const [name] = await engine.sql('SELECT name FROM tenant_demo.lists')
    await tab.getByRole('heading', { name: name! }).waitFor()
  })

  test('task is added, ticked, renamed and deleted here, and comes from SQL', async () => {
    const tab = await signedIn()
    await add(tab, 'Water the plants')
    await tick(tab, 'Water the plants')
    await rename(tab, 'Buy bread', 'Buy milk')
    await tab.getByText('Up to date').waitFor()
    assert.deepEqual(await engine.sql('SELECT title, done FROM tenant_demo.tasks ORDER BY 1'), [
      'Buy milk|f',
      'Water the plants|t',
    ])
    await tab.getByRole('button', { name: 'Delete Buy milk' }).click()
    await item(tab, 'Buy milk').waitFor({ state: 'detached' })
    await engine.sql(`INSERT INTO tenant_demo.tasks (list_id, title) SELECT id, 'From psql' FROM tenant_demo.lists`)
    await item(tab, 'From psql').waitFor()
    await tab.getByText('Up to date').waitFor()
    assert.deepEqual(await titles(), ['From psql', 'Water the plants'])
  })

  test('app starts without a network, keeps changes, and sends them later', async () => {
    const tab = await signedIn()
    await tab.evaluate(() => navigator.serviceWorker.ready.then(() => undefined))
    site.proxy.down()
    await tab.reload()
    await item(tab, 'Buy bread').waitFor()
    await add(tab, 'Offline')
    await item(tab, 'Offline').getByText('waits').waitFor()
    await tab.getByText('Offline, 1 change is kept').waitFor()
    await tab.reload()
    await item(tab, 'Offline').waitFor()
    site.proxy.up()
    await tab.getByRole('button', { name: 'Sync' }).click()
    await tab.getByText('Up to date').waitFor()
    await item(tab, 'Offline').getByText('waits').waitFor({ state: 'detached' })
    assert.deepEqual(await titles(), ['Buy bread', 'Offline'])
  })

  test('two tabs show the same, hold one stream, and the second goes on alone', async () => {
    const first = await signedIn()
    const second = await site.page()
    await second.getByText('Another tab syncs').waitFor()
    await add(second, 'In the second tab')
    await item(first, 'In the second tab').waitFor()
    assert.equal(site.proxy.streams, 1)
    await first.close()
    await second.getByText('This tab syncs').waitFor()
    await add(second, 'Alone')
    await second.getByText('Up to date').waitFor()
    assert.deepEqual(await titles(), ['Alone', 'Buy bread', 'In the second tab'])
  })

  for (const [button, title] of [
    ['Take mine', 'Buy rye bread'],
    ['Keep what is there', 'Buy white bread'],
  ] as const)
    test(`conflict waits over a reload until "${button}" decides it`, async () => {
      const tab = await signedIn()
      await conflicted(tab)
      await tab.reload()
      const conflict = tab.getByRole('group', { name: 'Conflict' })
      await conflict.getByText('“Buy white bread”').waitFor()
      await conflict.getByText('“Buy rye bread”').waitFor()
      await tab.getByRole('button', { name: button }).click()
      await conflict.waitFor({ state: 'detached' })
      await item(tab, title).waitFor()
      await tab.getByRole('button', { name: 'Sync' }).click()
      await tab.getByText('Up to date').waitFor()
      assert.deepEqual(await titles(), [title])
    })

  for (const colorScheme of ['light', 'dark'] as const)
    test(`every state is accessible in the ${colorScheme} scheme`, async () => {
      const tab = await site.page()
      await tab.emulateMedia({ colorScheme })
      await tab.getByRole('button', { name: 'Sign in' }).waitFor()
      assert.deepEqual(await violations(tab), [])
      await tab.getByLabel('Password').fill('posduif-demo')
      await tab.keyboard.press('Enter')
      await item(tab, 'Buy bread').waitFor()
      for (const title of ['Water the plants', 'Call the plumber']) await add(tab, title)
      await tick(tab, 'Call the plumber')
      await tab.getByText('Up to date').waitFor()
      await conflicted(tab)
      site.proxy.down()
      await tab.getByText('Offline').waitFor()
      await add(tab, 'Book the train')
      await item(tab, 'Book the train').getByText('waits').waitFor()
      assert.deepEqual(await violations(tab), [])
      const pictures = process.env['POSDUIF_SCREENSHOTS']
      if (!pictures) return
      mkdirSync(pictures, { recursive: true })
      await tab.setViewportSize({ width: 760, height: 620 })
      await tab.screenshot({ path: join(pictures, `tasks-web-${colorScheme}.png`) })
    })
})
