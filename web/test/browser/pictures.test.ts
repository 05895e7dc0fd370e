import { after, before, describe, test } from 'node:test'
import type { Browser } from 'playwright-core'
import { Console, launch, VIEWS } from './harness'
import { Scene } from './scene'

/** Each screen with a text that it shows once it has its values. */
const SCREENS = [
  { name: 'now', path: 'now', title: 'Now', shows: 'commit' },
  { name: 'slots', path: 'slots', title: 'Slots', shows: 'old_connector' },
  { name: 'trace', path: 'trace?tenant=demo', title: 'Trace', shows: 'live' },
  { name: 'devices', path: 'devices?tenant=demo', title: 'Devices', shows: 'Pixel 9' },
  { name: 'tenants', path: 'tenants', title: 'Tenants', shows: 'acme' },
  { name: 'tenant', path: 'tenants?tenant=demo', title: 'Tenants', shows: 'tenant_demo' },
  { name: 'streams', path: 'streams?tenant=demo', title: 'Streams and groups', shows: 'billing' },
  { name: 'uploads', path: 'uploads?tenant=demo', title: 'Uploads and conflicts', shows: 'brass' },
  { name: 'quarantine', path: 'quarantine?tenant=demo', title: 'Quarantine', shows: 'driver 7' },
  { name: 'doctor', path: 'doctor', title: 'Doctor', shows: 'postgres.wal_level' },
  { name: 'history', path: 'history', title: 'History', shows: 'console opened' },
]

/** Once the first reader has opened the figures, the engine counts devices and measures the rate of the log. */
async function isCounted({ page }: Console): Promise<void> {
  await page.locator('.facts > div', { hasText: 'Devices online' }).getByText('4', { exact: true }).waitFor()
  await page.locator('.pipeline li').first().getByText(/^[1-9].*\/s$/).waitFor()
}

const folder = process.env['POSDUIF_SCREENSHOTS']

/** Seconds of load before the first picture. */
const LOAD_SECONDS = Number(process.env['POSDUIF_SCREENSHOTS_LOAD'] ?? 45)

describe('pictures', { skip: folder ? false : 'POSDUIF_SCREENSHOTS names no folder' }, () => {
  let scene: Scene
  let browser: Browser
  before(async () => {
    scene = await Scene.start()
    browser = await launch()
    await scene.run(LOAD_SECONDS)
  })
  after(async () => {
    await Console.closeAll()
    await browser?.close()
    await scene?.stop()
  })

  test('the screen Now of a system in order', async () => {
    const console = await Console.signedIn(browser, scene.engine, {
      view: { width: 1280, height: 976, scheme: 'dark' },
    })
    await console.page.locator('.verdict.ok').waitFor()
    await isCounted(console)
    await console.picture('now-in-order', false)
    await console.close()
    await scene.trouble()
  })

  for (const view of VIEWS) {
    test(`every screen of a system in use, ${view.width} px wide in ${view.scheme}`, async () => {
      const console = await Console.signedIn(browser, scene.engine, { view })
      for (const { name, path, title, shows } of SCREENS) {
        await console.show(path, title)
        await console.page.locator('main').getByText(shows).first().waitFor()
        await console.page.waitForFunction(() => !document.body.innerText.includes('Reading…'))
        if (name === 'now') await isCounted(console)
        if (name === 'tenants') await console.page.locator('.sparkline .line[d*="L"]').first().waitFor()
        if (name === 'trace') {
          // Some changes with all of their steps, and the life of one of them.
          await console.page.getByRole('row').nth(14).waitFor()
          await console.page.getByRole('button', { name: 'Pause' }).click()
          const complete = console.page.locator('.trace tbody tr').filter({ hasNotText: '–' })
          await complete.first().getByRole('button').first().click()
        }
        await console.picture(`${name}-${view.width}-${view.scheme}`)
      }
      await console.close()
    })
  }
})
