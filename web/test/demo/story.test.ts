// The demo in a browser, against `posduif dev`.
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import type { Browser } from 'playwright-core'
import { launch } from '../browser/harness'
import { DESKTOP, Dev, Visitor, type DemoPage, type View } from './harness'

/** What the browser reports of requests to an engine that does not run. */
const ENGINE_DOWN = /^Failed to load resource: net::ERR_(CONNECTION_|EMPTY_RESPONSE|INCOMPLETE_CHUNKED|SOCKET_NOT_CONN)/

const REFUSED_TOKEN = /^Failed to load resource: the server responded with a status of 401 /

const SECONDS = /([\d.]+) (ms|s)/g

/** Rows of an earlier run stay where the demo goes on. */
const named = (text: string): string => `${text} ${Date.now().toString(36)}`

let dev: Dev
let browser: Browser

before(async () => {
  dev = await Dev.start()
  browser = await launch()
})
after(async () => {
  await browser?.close()
  await dev?.stop()
})

async function visit(run: (demo: DemoPage, visitor: Visitor) => Promise<void>, view: View = DESKTOP): Promise<void> {
  const visitor = await Visitor.come(browser, dev, view)
  let failure: unknown
  try {
    const demo = await visitor.open()
    await demo.ready()
    await run(demo, visitor)
  } catch (error) {
    failure = error
  }
  await visitor.close().catch((error: unknown) => (failure ??= error))
  if (failure !== undefined) throw failure
}

/** The durations of a sentence, in ms. */
function times(text: string): number[] {
  return [...text.matchAll(SECONDS)].map(([, value, unit]) => Number(value) * (unit === 's' ? 1000 : 1))
}

describe('story', () => {
  test('all_six_steps_are_observed_and_nothing_is_lost', () =>
    visit(async (demo, visitor) => {
      const { page, joe, bob } = demo
      await demo.picture('demo-start', true)

      await demo.perform('sql')
      const arrivals = times(await demo.outcome())
      assert.equal(arrivals.length, 3)
      assert.ok(Math.max(...arrivals) < 3000, `in Redis and on both screens after ${arrivals.join(', ')} ms`)
      await demo.picture('demo-sql')

      await demo.perform('offline')
      assert.match(await demo.outcome(), /^3 changes wait/)
      assert.equal(await demo.badge(joe).innerText(), '3')
      assert.equal(await joe.getByRole('switch', { name: 'Offline' }).getAttribute('aria-checked'), 'true')
      await demo.picture('demo-offline')

      await demo.perform('conflict')
      const versions = joe.getByRole('region', { name: 'Changes to decide' })
      await versions.getByText('Joe and Bob have changed the same row').waitFor()
      const [mine, theirs] = await versions.locator('.what').allInnerTexts()
      assert.ok(mine && theirs && mine !== theirs, `${mine} and ${theirs}`)
      assert.deepEqual(await demo.violations(), [])
      await demo.picture('demo-conflict')
      await versions.getByRole('button', { name: 'Keep Joe’s' }).click()
      assert.match(await demo.outcome(), /^Joe’s version was kept/)
      await bob.getByRole('button', { name: `Rename ${mine}` }).first().waitFor()

      await demo.perform('lost')
      assert.match(await demo.outcome(), /^Sent twice .* In Postgres: still 3 rows\.$/)
      await demo.badgeShows(joe, 0)
      await demo.picture('demo-lost')

      visitor.allowed = ENGINE_DOWN
      await demo.perform('kill')
      const [engineMs = Infinity] = times(await demo.outcome())
      assert.ok(engineMs < 3000, `the engine was back after ${engineMs} ms`)
      for (const pane of [joe, bob]) await demo.badgeShows(pane, 0)
      assert.deepEqual(await demo.checked(), ['0', '0', '0'])
      await demo.picture('demo-kill')
      visitor.allowed = null

      await demo.perform('revoke')
      const [darkMs = Infinity] = times(await demo.outcome())
      assert.ok(darkMs < 2000, `the phone went dark after ${darkMs} ms`)
      await joe.getByText('This phone was revoked').waitFor()
      assert.equal(await joe.locator('.task').count(), 0)
      assert.deepEqual(await demo.violations(), [])
      await demo.picture('demo-revoke')

      await joe.getByRole('button', { name: 'Enroll again' }).click()
      await demo.ready()
      assert.deepEqual(await demo.checked(), ['0', '0', '0'])
      assert.equal(await page.locator('.step.done').count(), 6)
      assert.deepEqual(await demo.violations(), [])
      await demo.picture('demo-end', true)
    }))
})

describe('panes', () => {
  test('edits_by_hand_reach_the_other_pane', () =>
    visit(async ({ joe, bob, page }) => {
      const [before, later, note] = [named('Walnuts'), named('Pecans'), named('They had pecans')]
      await bob.getByLabel('New task').fill(before)
      await bob.getByLabel('New task').press('Enter')
      const row = joe.locator('.task', { hasText: before })
      await row.getByRole('checkbox').check()
      await bob.locator('.task.is-done', { hasText: before }).waitFor()
      await row.getByRole('button', { name: `Rename ${before}` }).click()
      await page.keyboard.type(later)
      await page.keyboard.press('Enter')
      await bob.getByRole('button', { name: `Delete ${later}`, exact: true }).click()
      await joe.locator('.task', { hasText: later }).waitFor({ state: 'detached' })
      await joe.getByLabel('Message to Bob').fill(note)
      await joe.getByRole('button', { name: 'Send' }).click()
      await bob.locator('.bubble', { hasText: note }).waitFor()
    }))

  test('expired_token_is_replaced_on_both', () =>
    visit(async (demo, visitor) => {
      visitor.allowed = REFUSED_TOKEN
      for (const pane of [demo.joe, demo.bob]) {
        const refused = demo.page.waitForResponse((answer) => answer.status() === 401)
        const added = demo.page.waitForResponse(/\/api\/(enrollment\/complete|devices)$/)
        await pane.getByRole('button', { name: 'Expire the token' }).click()
        await Promise.all([refused, added])
        await demo.ready()
      }
      assert.deepEqual(await demo.checked(), ['0', '0', '0'])
    }))

  test('restart_of_redis_loses_nothing', () =>
    visit(async (demo, visitor) => {
      visitor.allowed = /^Failed to load resource: the server responded with a status of 503 /
      const done = demo.page.waitForResponse(/\/demo\/api\/redis\/restart$/)
      await demo.page.getByRole('button', { name: 'Restart Redis' }).click()
      assert.equal((await done).status(), 200)
      const title = named('After Redis')
      await demo.bob.getByLabel('New task').fill(title)
      await demo.bob.getByLabel('New task').press('Enter')
      await demo.joe.locator('.task', { hasText: title }).waitFor()
      await demo.ready()
      assert.deepEqual(await demo.checked(), ['0', '0', '0'])
    }))

  test('reload_keeps_devices_and_unsent_changes', () =>
    visit(async (demo, visitor) => {
      const title = named('Kept over a reload')
      await demo.joe.getByRole('switch', { name: 'Offline' }).click()
      await demo.joe.getByLabel('New task').fill(title)
      await demo.joe.getByLabel('New task').press('Enter')
      await demo.badgeShows(demo.joe, 1)
      const logins: string[] = []
      visitor.context.on('request', (request) => {
        if (/\/api\/(auth\/login|enrollment|devices)/.test(request.url())) logins.push(request.url())
      })
      await demo.page.reload()
      await demo.ready()
      await demo.bob.locator('.task', { hasText: title }).waitFor()
      await demo.badgeShows(demo.joe, 0)
      assert.deepEqual(logins, [])
      assert.deepEqual(await demo.checked(), ['0', '0', '0'])
    }))

  test('second_tab_has_devices_of_its_own', () =>
    visit(async (demo, visitor) => {
      const title = named('Seen by one phone')
      const second = await visitor.open()
      await second.ready()
      await second.page.getByText('The demo is open in another tab').waitFor()
      await second.joe.getByRole('switch', { name: 'Offline' }).click()
      await demo.bob.getByLabel('New task').fill(title)
      await demo.bob.getByLabel('New task').press('Enter')
      await demo.joe.locator('.task', { hasText: title }).waitFor()
      assert.equal(await second.joe.locator('.task', { hasText: title }).count(), 0)
      await second.bob.locator('.task', { hasText: title }).waitFor()
    }))
})

describe('sql', () => {
  test('error_is_shown_with_its_state', () =>
    visit(async ({ page }, visitor) => {
      visitor.allowed = /status of 400 /
      await page.getByLabel('SQL, as any program would write it').fill('SELECT no_such_column FROM tasks')
      await page.keyboard.press('Control+Enter')
      await page.getByRole('region', { name: 'Result' }).getByText('42703').waitFor()
    }))

  test('deletion_by_sql_leaves_both_panes', () =>
    visit(async ({ page, joe, bob }) => {
      const title = named('Soon gone')
      const statement = page.getByLabel('SQL, as any program would write it')
      const result = page.getByRole('region', { name: 'Result' })
      await statement.fill(`INSERT INTO tasks (list_id, title) SELECT id, '${title}' FROM lists LIMIT 1`)
      await page.getByRole('button', { name: 'Run' }).click()
      for (const pane of [joe, bob]) await pane.locator('.task', { hasText: title }).waitFor()
      await statement.fill(`DELETE FROM tasks WHERE title = '${title}' RETURNING title`)
      await page.getByRole('button', { name: 'Run' }).click()
      await result.getByText('DELETE 1').waitFor()
      for (const pane of [joe, bob]) await pane.locator('.task', { hasText: title }).waitFor({ state: 'detached' })
    }))
})

describe('counters', () => {
  test('row_that_the_devices_lack_and_change_made_twice_are_counted', () =>
    visit(async (demo) => {
      await demo.perform('sql')
      await demo.outcome()
      assert.deepEqual(await demo.checked(), ['0', '0', '0'])
      type Truth = { tasks: { id: string; title: string }[] }
      await demo.page.route(/\/demo\/api\/truth/, async (route) => {
        const answer = await route.fetch()
        const truth = (await answer.json()) as Truth
        const tagged = truth.tasks.find(({ title }) => / #[a-z0-9]{4}$/.test(title))
        const copy = tagged ? [{ ...tagged, id: crypto.randomUUID() }] : []
        await route.fulfill({ response: answer, json: { ...truth, tasks: [...truth.tasks, ...copy] } })
      })
      await demo.counters.locator('.figure.bad', { hasText: 'lost' }).waitFor()
      // One row at each of the two devices.
      assert.match(await demo.count('lost'), /^2\b/)
      await demo.page.unroute(/\/demo\/api\/truth/)
      await demo.counters.locator('.figure.good', { hasText: 'lost' }).waitFor()
    }))
})

describe('sizes and themes', () => {
  for (const width of [1280, 900, 390]) {
    for (const scheme of ['dark', 'light'] as const) {
      test(`page_fits_${width}_in_${scheme}`, () =>
        visit(
          async (demo) => {
            await demo.perform('sql')
            await demo.outcome()
            assert.equal(await demo.overflow(), 0)
            assert.deepEqual(await demo.violations(), [])
            await demo.picture(`demo-${width}-${scheme}`, true)
          },
          { width, height: width > 1000 ? 900 : 844, scheme },
        ))
    }
  }
})
