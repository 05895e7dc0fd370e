// Prints rates; asserts only that the work was done. node test/run.mjs bench
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { begin } from '../browser/harness.js'

const ROWS = Number(process.env['ROWS'] ?? 50_000)

test(`first sync of ${ROWS} rows, and uploads, in a browser`, async (of) => {
  const { engine, site } = await begin(of)
  await engine.sql(
    `INSERT INTO tenant_demo.tasks (owner_id, title) SELECT u.id, 'task ' || n FROM tenant_demo.users u, generate_series(1, ${ROWS}) n WHERE username = 'bob'`,
  )
  const tab = await site.tab('?quiet')
  let start = performance.now()
  await tab.evaluate((login) => page.client.login(login), {
    username: 'bob',
    password: 'posduif-demo',
    tenant: 'demo',
  })
  await tab.waitForFunction(() => page.status().upToDate, null, { timeout: 100_000 })
  report('first sync', ROWS, start)
  start = performance.now()
  await tab.reload()
  await tab.waitForFunction((rows) => 'page' in globalThis && page.titles().length === rows, ROWS, {
    timeout: 60_000,
  })
  report('reload until all rows are shown', ROWS, start)
  start = performance.now()
  assert.ok(await tab.evaluate(() => page.add(Array.from({ length: 2000 }, (_, n) => `new ${n}`))))
  report('changes until durable', 2000, start)
  await tab.waitForFunction(() => page.status().outbox.waiting === 0, null, { timeout: 100_000 })
  report('changes until applied', 2000, start)
  const times = await tab.evaluate(async () => {
    const list: number[] = []
    for (let n = 0; n < 100; n += 1) {
      const since = performance.now()
      await page.add([`one ${n}`])
      list.push(performance.now() - since)
    }
    return list.sort((one, other) => one - other)
  })
  console.log(`one change until durable: median ${times[50]!.toFixed(1)} ms, p95 ${times[95]!.toFixed(1)} ms`)
})

function report(what: string, count: number, start: number): void {
  const seconds = (performance.now() - start) / 1000
  console.log(`${what}: ${seconds.toFixed(2)} s, ${Math.round(count / seconds)} a second`)
}
