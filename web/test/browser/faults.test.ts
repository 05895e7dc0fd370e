import assert from 'node:assert/strict'
import { after, before, describe, test, type TestContext } from 'node:test'
import type { Browser } from 'playwright-core'
import { Engine } from './engine'
import { Console, launch } from './harness'

describe('faults', () => {
  let engine: Engine
  let browser: Browser
  let console: Console
  before(async () => {
    engine = await Engine.start()
    browser = await launch()
    console = await Console.signedIn(browser, engine)
    await verdict('ok')
  })
  after(async () => {
    await Console.closeAll()
    await browser?.close()
    await engine?.stop()
  })

  /** Waits until the verdict has a level, and reports how long that took. */
  async function verdict(level: 'ok' | 'warn' | 'fail', context?: TestContext, limitMs = 15_000): Promise<string> {
    const began = performance.now()
    const bar = console.page.locator(`.verdict.${level}`)
    await bar.waitFor({ timeout: limitMs })
    const sentence = await bar.locator('strong').innerText()
    context?.diagnostic(`${level} after ${((performance.now() - began) / 1000).toFixed(1)} s: ${sentence}`)
    return sentence
  }

  test('after a kill of the engine the page is red within 3 s, and in order again by itself', async (context) => {
    const { page } = console
    const pid = await engine.pid()
    const restart = await engine.kill()
    context.after(restart)
    assert.equal(await verdict('fail', context, 3000), 'The engine does not answer')
    await page.locator('[data-stale]').waitFor()
    restart()
    await verdict('ok', context, 30_000)
    assert.notEqual(await engine.pid(), pid)
    assert.equal(await page.locator('[data-stale]').count(), 0)
    assert.equal(await page.getByLabel('Or sign in with the admin token').count(), 0)
    await console.show('history', 'History')
    await page.getByText('the engine restarted once').waitFor()
    await console.show('now', 'Now')
  })

  test('an engine that is restarted at once is in order again without a reload', async (context) => {
    const began = performance.now()
    process.kill(await engine.pid(), 'SIGKILL')
    await console.show('history', 'History')
    await console.page.getByText('the engine restarted 2 times').waitFor()
    await verdict('ok', context, 30_000)
    context.diagnostic(`figures again and in order after ${((performance.now() - began) / 1000).toFixed(1)} s`)
    await console.show('now', 'Now')
  })

  test('while Redis is suspended the verdict names it, and afterwards all is in order', async (context) => {
    const resume = engine.suspendRedis()
    context.after(resume)
    assert.match(await verdict('fail', context, 8000), /Redis/)
    await console.page.locator('.verdict code').getByText('redis-server').waitFor()
    assert.deepEqual(await console.violations(), [])
    await console.picture('redis-suspended')
    resume()
    await verdict('ok', context, 30_000)
  })

  test('every screen answers while Redis is suspended', async (context) => {
    const resume = engine.suspendRedis()
    context.after(resume)
    await console.page.locator('.verdict.fail').getByText(/Redis/).waitFor()
    for (const [path, title] of [
      ['tenants', 'Tenants'],
      ['devices?tenant=demo', 'Devices'],
      ['streams?tenant=demo', 'Streams and groups'],
      ['uploads?tenant=demo', 'Uploads and conflicts'],
    ] as const) {
      await console.show(path, title)
      await console.page.waitForFunction(() => !document.body.innerText.includes('Reading…'))
    }
    resume()
    await console.show('now', 'Now')
    await verdict('ok', undefined, 30_000)
  })

  test('an abandoned slot is on Now with the command that drops it', async (context) => {
    const { page } = console
    await engine.sql("SELECT pg_create_logical_replication_slot('old_connector', 'pgoutput')")
    assert.match(await verdict('warn', context), /old_connector is abandoned/)
    const command = await page.locator('.verdict code').innerText()
    assert.equal(command, 'posduif slot drop old_connector --yes')
    await engine.type(command)
    await verdict('ok', context)
    await page.getByText('old_connector').waitFor({ state: 'detached' })
  })
})
