// The first sync of many rows in a page that shows 50 of them, and in one that shows all: prints rows a second, the longest
// frames, and memory. No frame should be above 50 ms. Engine, servers, browser and page share the machine, and frames wait for
// all of them; so the bench fails by the CPU time that the page's main thread takes between two frames, and prints the frames
// of a page that does nothing, in the same run, beside those of the page: the difference is what the sync costs.
// ROWS=100000 node test/run.mjs bench first-sync
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { begin } from '../browser/harness.js'
import { record, type Frames, type Span } from './frames.js'

const ROWS = Number(process.env['ROWS'] ?? 100_000)

const FRAME_MS_MAX = 50

/** What others have published of theirs: other machines and other rows, for orientation. */
const PUBLISHED = [
  'PowerSync, "How fast is PowerSync?", Flutter SDK, without a date: up to 27,600 rows a second on a desktop (Ryzen 9 7900X), 7,100 on a Pixel 8a',
  'RxDB, "Slow IndexedDB", 2023: 1,000 documents into IndexedDB in one transaction in 80 ms, 12,500 a second, without sync; no figure of a first sync was found',
]

test(`first sync of ${ROWS} rows`, async (of) => {
  const { engine, browser, site } = await begin(of)
  await engine.sql(
    `INSERT INTO tenant_demo.tasks (owner_id, title) SELECT u.id, 'task ' || n FROM tenant_demo.users u, generate_series(1, ${ROWS}) n WHERE username = 'bob'`,
  )
  for (const query of ['?quiet&limit=50', '?quiet']) {
    // What was stored by the page before must not help.
    const [context, idle] = [await browser.newContext(), await browser.newContext()]
    const [tab, control] = [await context.newPage(), await idle.newPage()]
    await tab.goto(`${site.proxy.url}/${query}`)
    await tab.waitForFunction(() => 'page' in globalThis)
    const cdp = await context.newCDPSession(tab)
    const end = await record(await browser.newBrowserCDPSession(), [tab, control])
    const start = performance.now()
    await tab.evaluate((login) => page.client.login(login), { username: 'bob', password: 'posduif-demo', tenant: 'demo' })
    await tab.evaluate(() => page.upToDate())
    const seconds = (performance.now() - start) / 1000
    const [own, other] = (await end()) as [Frames, Frames]
    await cdp.send('HeapProfiler.collectGarbage')
    const { usedSize } = await cdp.send('Runtime.getHeapUsage')
    const mib = (bytes: number) => (bytes / 2 ** 20).toFixed(0)
    const ownLong = own.spans.filter(isLong)
    const beside = `${other.spans.filter(isLong).length} of ${other.spans.length} frames`
    for (const line of [
      `${query}: ${ROWS} rows in ${seconds.toFixed(1)} s, ${Math.round(ROWS / seconds)} a second`,
      `  memory of scripts: ${mib(own.peak)} MiB at most, ${mib(usedSize)} MiB after`,
      `  above ${FRAME_MS_MAX} ms: ${ownLong.length} of ${own.spans.length} frames, longest ${most(own.spans, 'ms')} ms`,
      `    of a page beside it that does nothing: ${beside}, longest ${most(other.spans, 'ms')} ms`,
      ...ownLong.sort((one, two) => two.ms - one.ms).slice(0, 8).map(lineOf),
      `  CPU time between two frames, most: ${most(own.spans, 'cpu')} ms`,
      `  tasks, longest in CPU time: ${most(own.tasks, 'cpu')} ms; by the clock: ${most(own.tasks, 'ms')} ms`,
    ])
      console.log(line)
    assert.equal(await tab.evaluate(() => page.countRows()), ROWS)
    assert.ok(own.tasks.length > 0, 'the trace has no tasks of the page')
    for (const { cpu, what } of [...own.spans, ...own.tasks]) {
      const found = `${cpu.toFixed(0)} ms of CPU time between two frames, or in one task (${what})`
      assert.ok(cpu <= FRAME_MS_MAX, `${found}; above ${FRAME_MS_MAX} ms in a page beside it that does nothing: ${beside}`)
    }
    await context.close()
    await idle.close()
  }
  for (const line of PUBLISHED) console.log(line)
})

function isLong({ ms }: Span): boolean {
  return ms > FRAME_MS_MAX
}

function lineOf({ ms, busy, cpu, what }: Span): string {
  return `    ${ms.toFixed(0)} ms: tasks of ${busy.toFixed(0)} ms by the clock, ${cpu.toFixed(0)} ms of CPU time (${what})`
}

function most(spans: readonly Span[], of: 'ms' | 'cpu'): string {
  const sorted = spans.map((span) => span[of]).sort((one, other) => other - one)
  return sorted.slice(0, 5).map(Math.round).join(', ')
}
