import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import type { Browser } from 'playwright-core'
import { Engine } from './engine'
import { Console, launch } from './harness'
import { seed } from './seed'

describe('actions', () => {
  let engine: Engine
  let browser: Browser
  let console: Console
  before(async () => {
    engine = await Engine.start()
    await seed(engine)
    browser = await launch()
    console = await Console.signedIn(browser, engine)
  })
  after(async () => {
    await console?.close()
    await Console.closeAll()
    await browser?.close()
    await engine?.stop()
  })

  /** Opens the dialog, types the name and confirms. Returns what the engine answered. */
  async function act(button: RegExp, name: string, verb: string): Promise<string> {
    const { page } = console
    await page.locator('main').getByRole('button', { name: button }).first().click()
    const dialog = page.getByRole('dialog', { name: verb })
    assert.deepEqual(await console.violations(), [], `${verb}: axe`)
    const confirm = dialog.getByRole('button', { name: verb })
    const field = dialog.getByRole('textbox')
    assert.equal(await field.evaluate((element) => element === document.activeElement), true, 'the field has the focus')
    await field.fill(name.slice(0, -1))
    assert.equal(await confirm.isDisabled(), true, 'another name does not confirm')
    await field.fill(name)
    await confirm.click()
    await dialog.locator('output.done').waitFor()
    const answer = await dialog.locator('output').innerText()
    await dialog.getByRole('button', { name: 'Close' }).click()
    await dialog.waitFor({ state: 'detached' })
    return answer
  }

  test('a slot without a reader is dropped', async () => {
    await console.show('slots', 'Slots')
    assert.match(await act(/^Drop the slot old_connector/, 'old_connector', 'Drop the slot'), /old_connector/)
    await console.page.locator('main').getByRole('row', { name: /^old_connector/ }).waitFor({ state: 'detached' })
    await console.page.getByRole('list', { name: 'Advice' }).waitFor({ state: 'detached' })
    const left = await engine.sql("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'old_connector'")
    assert.deepEqual(left, ['0'])
  })

  test('the slot of the engine cannot be dropped', async () => {
    await console.show('slots', 'Slots')
    const row = console.page.getByRole('row', { name: /^posduif/ })
    await row.getByText('ours', { exact: true }).waitFor()
    assert.equal(await row.getByRole('button').count(), 0)
  })

  test('delivery to a tenant is paused and resumed', async () => {
    await console.show('tenants?tenant=demo', 'Tenants')
    await act(/^Pause delivery/, 'demo', 'Pause delivery')
    await console.page.locator('main').getByText('paused').first().waitFor()
    await act(/^Resume delivery/, 'demo', 'Resume delivery')
    await console.page.locator('main').getByRole('button', { name: /^Pause delivery/ }).waitFor()
  })

  test('the streams of a tenant are restarted', async () => {
    await console.show('tenants?tenant=demo', 'Tenants')
    await act(/^Resync/, 'demo', 'Resync')
  })

  test('a device is revoked', async () => {
    await console.show('devices?tenant=demo&device=phone-1', 'Devices')
    await act(/^Revoke the device/, 'phone-1', 'Revoke the device')
    const revoked = await engine.sql(
      "SELECT revoked_at IS NOT NULL FROM tenant_demo.devices WHERE device_id = 'phone-1'",
    )
    assert.deepEqual(revoked, ['t'])
    await console.page.getByRole('region', { name: 'Device', exact: true }).getByText('revoked').first().waitFor()
  })

  test('a conflict is resolved', async () => {
    const [id] = await engine.sql('SELECT id FROM tenant_demo.message_conflicts WHERE resolved_at IS NULL')
    await console.show('uploads?tenant=demo', 'Uploads and conflicts')
    await act(/^Choose the server/, id ?? '', 'Choose the server')
    await console.page.getByText('resolved: server').waitFor()
  })

  test('a quarantined change whose cause is not fixed stays, and is dropped', async () => {
    await console.show('quarantine?tenant=demo', 'Quarantine')
    const { page } = console
    await page.locator('main').getByRole('button', { name: 'Deliver the change' }).click()
    const entry = await page.locator('main p.sub code').first().innerText()
    await page.getByRole('dialog').getByRole('textbox').fill(entry)
    await page.getByRole('dialog').getByRole('button', { name: 'Deliver the change' }).click()
    await page.getByRole('dialog').getByText('stays in quarantine').waitFor()
    await page.keyboard.press('Escape')
    await page.locator('main').getByRole('button', { name: 'Drop the entry' }).waitFor()
    const id = await page.locator('main p.sub code').first().innerText()
    await act(/^Drop the entry/, id, 'Drop the entry')
    await page.getByText('The quarantine of demo is empty').waitFor()
  })

  test('every action is in the audit log, by the console', async () => {
    await console.show('history?actor=console', 'History')
    const table = console.page.getByRole('region', { name: 'Audit' })
    for (const action of ['slot dropped', 'tenant paused', 'tenant resumed', 'tenant resynced', 'device revoked']) {
      await table.getByText(action).first().waitFor()
    }
  })

  test('escape closes a dialog and changes nothing', async () => {
    await console.show('tenants?tenant=demo', 'Tenants')
    const { page } = console
    const button = page.locator('main').getByRole('button', { name: /^Resync/ })
    await button.click()
    await page.getByRole('dialog').waitFor()
    await page.keyboard.press('Escape')
    await page.getByRole('dialog').waitFor({ state: 'detached' })
    assert.equal(await button.evaluate((element) => element === document.activeElement), true, 'the focus returns')
  })
})
