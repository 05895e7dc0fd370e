import assert from 'node:assert/strict'
import { join } from 'node:path'
import { test } from 'node:test'
import { build } from 'esbuild'
import { begin, folder, launch, Site } from './harness.js'

test('IndexedDB of the browser passes the suite of storages', async () => {
  const shim = join(folder, 'test/browser/shim.ts')
  const { outputFiles } = await build({
    entryPoints: [join(folder, 'test/browser/suite.ts')],
    bundle: true,
    format: 'esm',
    target: 'es2022',
    write: false,
    alias: { 'node:test': shim, 'node:assert/strict': shim },
  })
  const browser = await launch()
  const site = await Site.open(browser, 'http://127.0.0.1:9', new Map([['/app.js', outputFiles[0]!.text]]))
  try {
    const tab = await site.context.newPage()
    await tab.goto(site.proxy.url)
    await tab.waitForFunction(() => 'runAll' in globalThis)
    const { count, failures } = await tab.evaluate(() =>
      (globalThis as unknown as { runAll(): Promise<{ count: number; failures: string[] }> }).runAll(),
    )
    assert.deepEqual(failures, [])
    assert.ok(count >= 9, `${count} tests`)
  } finally {
    await site.close()
    await browser.close()
  }
})

test('full disk is a status, and what was stored before is sent when there is space again', async (of) => {
  const { engine, site } = await begin(of)
  // The browser measures the space when the database is first used.
  const tab = await site.context.newPage()
  const cdp = await site.context.newCDPSession(tab)
  await cdp.send('Storage.overrideQuotaForOrigin', { origin: site.proxy.url, quotaSize: 2_000_000 })
  await tab.goto(site.proxy.url)
  await tab.waitForFunction(() => 'page' in globalThis)
  await tab.evaluate((login) => page.client.login(login), {
    username: 'bob',
    password: 'posduif-demo',
    tenant: 'demo',
  })
  await tab.waitForFunction(() => page.status().upToDate)
  site.proxy.fault = (_method, path) => (path.startsWith('/api') || path.startsWith('/sse') ? 'lose request' : 'pass')
  assert.equal(await tab.evaluate(() => page.add(['before'])), true)
  const result = await tab.evaluate(() => {
    // The browser compresses what it stores.
    const noise = Array.from({ length: 60 }, () => crypto.getRandomValues(new Uint8Array(60_000)).join(''))
    return page.client.tasks.create({ title: noise.join('') }).local
  })
  assert.ok(!result.ok && result.code === 'LOCAL_QUOTA', JSON.stringify(result))
  await tab.waitForFunction(() => page.status().error?.code === 'LOCAL_QUOTA')
  assert.deepEqual(await tab.evaluate(() => page.titles()), ['before'])
  await cdp.send('Storage.overrideQuotaForOrigin', { origin: site.proxy.url })
  site.proxy.fault = () => 'pass'
  assert.equal(await tab.evaluate(() => page.addAndWait('after')), 'applied')
  await tab.waitForFunction(() => page.status().error === null && page.status().outbox.waiting === 0)
  assert.deepEqual(await engine.sql('SELECT title FROM tenant_demo.tasks ORDER BY 1'), ['after', 'before'])
})
