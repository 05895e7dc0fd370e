import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import type { Browser } from 'playwright-core'
import { Engine } from './engine'
import { Console, launch, VIEWS } from './harness'

describe('session', () => {
  let engine: Engine
  let browser: Browser
  before(async () => {
    engine = await Engine.start()
    browser = await launch()
  })
  after(async () => {
    await Console.closeAll()
    await browser?.close()
    await engine?.stop()
  })

  test('without a session the page says how to get one', async () => {
    for (const view of VIEWS) {
      const console = await Console.open(browser, engine, { view })
      await console.page.getByText('posduif console', { exact: true }).waitFor()
      await console.page.getByLabel('Or sign in with the admin token').waitFor()
      assert.deepEqual(await console.violations(), [])
      assert.equal(await console.overflow(), 0)
      await console.picture(`sign-in-${view.width}-${view.scheme}`)
      await console.close()
    }
  })

  test('a link opens the console once and leaves the address', async () => {
    const link = await engine.link()
    const first = await Console.open(browser, engine, { link })
    await first.page.getByRole('heading', { name: 'Age of what clients see' }).waitFor()
    assert.equal(first.page.url().includes('link='), false)
    await first.close()
    const second = await Console.open(browser, engine, { link })
    await second.page.getByRole('alert').getByText('link').waitFor()
    await second.close()
  })

  test('a wrong token is refused with the reason', async () => {
    const console = await Console.open(browser, engine)
    await console.page.getByLabel('Or sign in with the admin token').fill('wrong')
    await console.page.getByRole('button', { name: 'Sign in' }).click()
    await console.page.getByRole('alert').getByText('admin.token').waitFor()
    await console.close()
  })

  test('signing out ends the session for every page', async () => {
    const console = await Console.signedIn(browser, engine)
    await console.page.getByRole('button', { name: 'Sign out' }).click()
    await console.page.getByLabel('Or sign in with the admin token').waitFor()
    await console.page.reload()
    await console.page.getByLabel('Or sign in with the admin token').waitFor()
    await console.close()
  })

  test('without admin.actions there is no button that changes anything', async () => {
    const console = await Console.signedIn(browser, await engine.readOnly())
    await console.page.getByText('Read only').waitFor()
    await console.show('tenants?tenant=demo', 'Tenants')
    await console.page.getByText('tenant_demo').waitFor()
    assert.equal(await console.page.getByRole('button', { name: /Pause|Resync/ }).count(), 0)
    await console.show('slots', 'Slots')
    await console.page.getByText('ours', { exact: true }).waitFor()
    assert.equal(await console.page.getByRole('button', { name: /^Drop/ }).count(), 0)
    await console.close()
  })

  test('the verdict turns red and values grey when the engine ends', async () => {
    const console = await Console.signedIn(browser, engine)
    const { page } = console
    assert.equal(await page.locator('[data-stale]').count(), 0)
    await engine.stop()
    await page.getByRole('status').getByText('The engine does not answer').waitFor()
    await page.locator('.verdict code').getByText('posduif').waitFor()
    await page.locator('[data-stale]').waitFor()
    await page.waitForFunction(() => document.title.startsWith('■ The engine does not answer'))
    await page.getByText(/^Figures of \d+ s ago$/).waitFor()
    assert.deepEqual(await console.violations(), [])
    await console.picture('engine-ended')
    await console.close()
  })
})
