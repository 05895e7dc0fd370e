import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import type { Browser } from 'playwright-core'
import { Engine } from './engine'
import { Console, launch, VIEWS } from './harness'
import { seed } from './seed'

/** Each screen with a text that it shows once it has its values. */
const SCREENS = [
  { path: 'now', title: 'Now', shows: 'commit' },
  { path: 'slots', title: 'Slots', shows: 'old_connector' },
  { path: 'trace', title: 'Trace', shows: 'live' },
  { path: 'devices?tenant=demo', title: 'Devices', shows: 'Pixel of Joe' },
  { path: 'devices?tenant=demo&device=phone-1', title: 'Devices', shows: 'Time line' },
  { path: 'tenants', title: 'Tenants', shows: 'demo' },
  { path: 'tenants?tenant=demo', title: 'Tenants', shows: 'tenant_demo' },
  { path: 'streams?tenant=demo', title: 'Streams and groups', shows: 'demo/changes' },
  { path: 'uploads?tenant=demo', title: 'Uploads and conflicts', shows: 'from the phone' },
  { path: 'quarantine?tenant=demo', title: 'Quarantine', shows: 'Drop the entry' },
  { path: 'doctor', title: 'Doctor', shows: 'postgres.wal_level' },
  { path: 'history', title: 'History', shows: 'console opened' },
]

describe('screens', () => {
  let engine: Engine
  let browser: Browser
  before(async () => {
    engine = await Engine.start()
    await seed(engine)
    browser = await launch()
  })
  after(async () => {
    await Console.closeAll()
    await browser?.close()
    await engine?.stop()
  })

  for (const view of VIEWS) {
    test(`every screen is shown ${view.width} px wide in ${view.scheme}, without errors and violations`, async () => {
      const console = await Console.signedIn(browser, engine, { view })
      for (const { path, title, shows } of SCREENS) {
        await console.show(path, title)
        await console.page.locator('main').getByText(shows).first().waitFor()
        await console.page.waitForFunction(() => !document.body.innerText.includes('Reading…'))
        const name = `${path.replace(/\W+/g, '-')}-${view.width}-${view.scheme}`
        assert.deepEqual(await console.violations(), [], `${name}: axe`)
        assert.equal(await console.overflow(), 0, `${name}: is wider than its window`)
      }
      await console.close()
    })
  }

  test('the command line that shows the same is at the foot of every screen', async () => {
    const console = await Console.signedIn(browser, engine)
    for (const { path, title } of SCREENS) {
      await console.show(path, title)
      assert.match(await console.page.locator('footer code').innerText(), /^posduif [a-z]/, path)
    }
    await console.close()
  })

  test('the verdict is in the title of the page', async () => {
    const console = await Console.signedIn(browser, engine)
    await console.page.waitForFunction(() => /^[●▲■] .+ – Now – Posduif$/.test(document.title))
    await console.close()
  })

  test('a change appears in the trace with its steps', async () => {
    const console = await Console.signedIn(browser, engine)
    await console.show('trace?table=messages', 'Trace')
    await console.page.getByText('live', { exact: true }).waitFor()
    await engine.sql(
      `INSERT INTO tenant_demo.messages (sender_id, recipient_id, content)
       SELECT b.id, j.id, 'traced' FROM tenant_demo.users b, tenant_demo.users j
       WHERE b.username = 'bob' AND j.username = 'joe'`,
    )
    const row = console.page.getByRole('row', { name: /insert/ })
    await row.getByText(/^\+\d/).nth(1).waitFor()
    await row.getByRole('button').first().click()
    await console.page.getByRole('region', { name: 'Life of the change' }).getByText('durable').waitFor()
    assert.deepEqual(await console.violations(), [])
    await console.picture('trace-life')
    await console.close()
  })

  test('filters and the order of a table are in the address', async () => {
    const console = await Console.signedIn(browser, engine)
    await console.show('devices?tenant=demo', 'Devices')
    await console.page.getByRole('button', { name: 'Outbox' }).click()
    await console.page.getByLabel('Include revoked devices').check()
    await console.page.waitForURL(/sort=-outbox/)
    assert.match(console.page.url(), /all=true/)
    await console.close()
  })

  test('the chosen theme stays after a reload', async () => {
    const console = await Console.signedIn(browser, engine)
    await console.page.getByRole('button', { name: /^Theme: / }).click()
    await console.page.locator('html[data-theme="light"]').waitFor()
    await console.page.reload()
    await console.page.locator('html[data-theme="light"]').waitFor()
    await console.close()
  })
})
