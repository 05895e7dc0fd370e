import assert from 'node:assert/strict'
import { test } from 'node:test'
import { FiguresFeed } from '../../api/figures'
import type { Figures } from '../../api/types'
import { titleOf, verdictAt } from '../../console/verdict'
import { FakeClock, FakeSource } from './fakes'

function figures(at: number, engine = 'a'): Figures {
  return {
    at,
    engine,
    version: '1',
    row: [at, 0.2],
    verdict: { level: 'ok', sentence: 'Fresh.', command: null, screen: null },
    problems: [],
    bound_seconds: 10,
    ready: true,
    replication: { state: 'streaming', since: 0, here: true, problem: null },
    epoch: null,
    slots: null,
    redis: null,
    devices: null,
    streams_open: 0,
    rejections: {},
    tenants: null,
  }
}

function scene(mayRetry: () => Promise<boolean> = () => Promise.resolve(true)) {
  const clock = new FakeClock()
  const sources: FakeSource[] = []
  const feed = new FiguresFeed(
    clock,
    () => {
      const source = new FakeSource()
      sources.push(source)
      return source
    },
    mayRetry,
  )
  feed.start()
  const verdict = () => verdictAt(feed.state.value, clock.now())
  return { clock, sources, feed, verdict, source: () => sources.at(-1)! }
}

test('before the first figures there is no verdict', () => {
  const { verdict } = scene()
  assert.equal(verdict(), null)
})

test('the verdict is that of the engine while figures come', async () => {
  const { clock, source, verdict } = scene()
  source().open()
  source().send('figures', figures(1))
  await clock.advance(2900)
  assert.deepEqual([verdict()?.level, verdict()?.sentence], ['ok', 'Fresh.'])
})

test('after 3 s without figures the engine does not answer', async () => {
  const { clock, source, verdict } = scene()
  source().open()
  source().send('figures', figures(1))
  await clock.advance(3100)
  assert.deepEqual(
    [verdict()?.level, verdict()?.sentence, verdict()?.command],
    ['fail', 'The engine does not answer', 'posduif status'],
  )
  assert.equal(titleOf(verdict(), 'Now'), '■ The engine does not answer – Now – Posduif')
})

test('a broken connection is reported within a second, unless the first attempt opens it again', async () => {
  const { clock, source, verdict } = scene(() => Promise.resolve(false))
  source().open()
  source().send('figures', figures(1))
  source().fail()
  await clock.advance(600)
  assert.equal(verdict()?.isLost, false)
  await clock.advance(200)
  assert.equal(verdict()?.isLost, true)
})

test('a broken connection is opened again, and its late events are ignored', async () => {
  const { clock, sources, feed, verdict } = scene()
  sources[0]!.open()
  sources[0]!.fail()
  assert.equal(sources[0]!.closed, true)
  await clock.advance(1000)
  assert.equal(sources.length, 2)
  sources[0]!.send('figures', figures(1, 'late'))
  assert.equal(feed.state.value.latest, null)
  sources[1]!.open()
  sources[1]!.send('figures', figures(2))
  assert.equal(verdict()?.level, 'ok')
})

test('delays grow while attempts fail', async () => {
  const { clock, sources, source } = scene()
  const attempts: number[] = []
  for (let round = 0; round < 4; round += 1) {
    source().fail()
    const before = sources.length
    let waited = 0
    while (sources.length === before) {
      await clock.advance(25)
      waited += 25
    }
    attempts.push(waited)
  }
  assert.deepEqual(attempts, [...attempts].sort((a, b) => a - b))
  assert.ok(attempts.at(-1)! > attempts[0]! * 3, attempts.join())
})

test('a silent connection is opened again', async () => {
  const { clock, sources, source } = scene()
  source().open()
  source().send('figures', figures(1))
  await clock.advance(8000)
  assert.equal(sources.length, 2)
})

test('a connection that does not open is given up', async () => {
  const { clock, sources } = scene()
  await clock.advance(12_000)
  assert.equal(sources.length, 2)
})

test('without a session the stream is not opened again', async () => {
  const { clock, sources, source } = scene(() => Promise.resolve(false))
  source().open()
  source().fail()
  await clock.advance(60_000)
  assert.equal(sources.length, 1)
})

test('another engine is noted as a restart', () => {
  const { source, feed } = scene()
  source().open()
  source().send('figures', figures(1))
  source().send('figures', figures(2))
  source().send('figures', figures(3, 'b'))
  assert.deepEqual(feed.state.value.restarts, [3])
})

test('after stop nothing is received and nothing is opened', async () => {
  const { clock, sources, source, feed } = scene()
  source().open()
  feed.stop()
  source().send('figures', figures(1))
  await clock.advance(60_000)
  assert.deepEqual([sources.length, feed.state.value.latest], [1, null])
})
