import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { clock } from '../../src/clock.js'
import { readBatch, readEnrolled, readResults } from '../../src/effects/answers.js'
import { backoff } from '../../src/effects/backoff.js'
import { requestToken } from '../../src/effects/credentials.js'
import { EventParser } from '../../src/effects/event-stream.js'
import { Http } from '../../src/effects/http.js'
import { readMessage } from '../../src/tabs/channel.js'

describe('event stream', () => {
  const text =
    'retry: 1000\n\n: a comment\n\nid: c1\nevent: message\ndata: {"a":1}\n\ndata: ä\r\ndata:\r\ndata:  ü\r\n\r\n' +
    'event: presence\n\nid: 2\ndata: not whole\n'

  test('parser reads chunks of any size', () => {
    for (let size = 1; size <= text.length; size += 1) {
      const parser = new EventParser()
      const events = []
      for (let at = 0; at < text.length; at += size) events.push(...parser.push(text.slice(at, at + size)))
      assert.deepEqual(events, [
        { name: 'message', id: 'c1', data: '{"a":1}' },
        { name: 'message', id: null, data: 'ä\n\n ü' },
      ])
    }
  })

  test('event without end is refused at a bound', () => {
    const parser = new EventParser()
    assert.throws(() => {
      for (;;) parser.push('x'.repeat(100_000))
    })
    const lines = new EventParser()
    assert.throws(() => {
      for (;;) lines.push(`data: ${'x'.repeat(1000)}\n`)
    })
  })
})

describe('responses', () => {
  test('any JSON is read or refused, and never throws', () => {
    fc.assert(
      fc.property(fc.jsonValue(), (body) => {
        for (const read of [readBatch, readResults, readEnrolled, readMessage]) read(body)
      }),
    )
    const part = fc.oneof(fc.jsonValue(), fc.constant([]), fc.constant([{ table: 't', op: 'insert', id: 1 }]))
    const batch = fc.record({
      messages: part,
      users: part,
      changes: part,
      cursor: part,
      has_more: part,
      reset: part,
      results: part,
    })
    fc.assert(fc.property(batch, (body) => void [readBatch(body), readResults(body)]))
  })

  test('batch of the documentation is read', () => {
    const batch = readBatch({
      messages: [{ id: 'm' }],
      users: [],
      changes: [{ table: 't', op: 'delete', id: 5, row: null }],
      cursor: 'c',
      has_more: false,
      reset: true,
      position: '1-1',
    })
    assert.deepEqual(batch, {
      messages: [{ id: 'm' }],
      users: [],
      changes: [{ table: 't', op: 'delete', id: '5', row: null }],
      cursor: 'c',
      hasMore: false,
      reset: true,
    })
  })

  test('batch with memberships is read, and one with audiences that are no texts is refused', () => {
    const body = (change: object) => ({
      messages: [],
      users: [],
      changes: [{ op: 'join', group: 'list', id: '42' }, change],
      cursor: 'c',
      has_more: true,
      reset: false,
      scope: 'list:42',
    })
    const batch = readBatch(body({ table: 't', op: 'insert', id: 'a', row: { id: 'a' }, via: ['list:42'] }))
    assert.equal(batch?.scope, 'list:42')
    assert.deepEqual(batch.changes, [
      { table: '', op: 'join', id: '42', row: null, group: 'list' },
      { table: 't', op: 'insert', id: 'a', row: { id: 'a' }, via: ['list:42'] },
    ])
    for (const via of ['list:42', [42], {}, null]) {
      assert.equal(readBatch(body({ table: 't', op: 'insert', id: 'a', row: { id: 'a' }, via })), null)
    }
    assert.equal(readBatch(body({ op: 'insert', id: 'a', row: { id: 'a' } })), null)
  })

  const answers: [Response | Error, object][] = [
    [
      new Response('{"error":{"code":"DATABASE_ERROR","message":"down"}}', {
        status: 503,
        headers: { 'retry-after': '3' },
      }),
      { kind: 'later', code: 'DATABASE_ERROR', message: 'down', retryAfter: 3000 },
    ],
    [
      new Response('<html>', { status: 502 }),
      { kind: 'later', code: 'HTTP_502', message: 'the server answered 502', retryAfter: null },
    ],
    [
      new Response('{}', { status: 429, headers: { 'retry-after': 'soon' } }),
      { kind: 'later', code: 'HTTP_429', message: 'the server answered 429', retryAfter: null },
    ],
    [
      new Response('{"error":{"code":"DEVICE_REVOKED"}}', { status: 401 }),
      { kind: 'ended', code: 'DEVICE_REVOKED', message: 'the server answered 401' },
    ],
    [
      new Response('{"error":{"code":"SEQUENCE_GAP","message":"gap","details":{"expected":7}}}', { status: 409 }),
      { kind: 'refused', status: 409, code: 'SEQUENCE_GAP', message: 'gap', expected: 7 },
    ],
    [
      new Response('[]', { status: 400 }),
      { kind: 'refused', status: 400, code: 'HTTP_400', message: 'the server answered 400', expected: null },
    ],
    [
      new TypeError('fetch failed', { cause: new Error('refused') }),
      { kind: 'lost', message: 'http://server does not answer: refused' },
    ],
  ]
  for (const [answer, failure] of answers) {
    test(`${answer instanceof Response ? answer.status : 'no answer'} is ${JSON.stringify(failure)}`, async () => {
      const http = new Http('http://server/', clock, async () => {
        if (answer instanceof Error) throw answer
        return answer
      })
      assert.deepEqual(await http.send({ method: 'GET', path: '/' }), { ok: false, failure })
    })
  }

  test('response that does not come is lost after its timeout', async () => {
    const timers: (() => void)[] = []
    const slow = { ...clock, schedule: (run: () => void) => (timers.push(run), () => {}) }
    const http = new Http(
      'http://server',
      slow,
      (_url, init) =>
        new Promise((_resolve, reject) => init?.signal?.addEventListener('abort', () => reject(new Error('aborted')))),
    )
    const answer = http.send({ method: 'GET', path: '/' })
    timers.forEach((run) => run())
    assert.deepEqual(await answer, {
      ok: false,
      failure: { kind: 'lost', message: 'http://server does not answer: no response within 30 s' },
    })
  })
})

describe('credentials', () => {
  const never = new AbortController().signal

  test('callback that throws, hangs or returns nonsense is asked again later', async () => {
    const hanging = { ...clock, schedule: (run: () => void) => (queueMicrotask(run), () => {}) }
    const outcomes = await Promise.all([
      requestToken(() => Promise.reject(new Error('offline')), 'start', clock, never),
      requestToken(
        () => {
          throw new Error('of the app')
        },
        'start',
        clock,
        never,
      ),
      requestToken(() => new Promise(() => {}), 'start', hanging, never),
      requestToken(async () => ({}) as { token: string }, 'start', clock, never),
      requestToken(async () => undefined as unknown as null, 'start', clock, never),
    ])
    assert.deepEqual(
      outcomes.map(({ ok }) => ok),
      [false, false, false, false, false],
    )
  })

  test('null means signed out', async () => {
    assert.deepEqual(await requestToken(async () => null, 'start', clock, never), { ok: true, token: null })
    assert.deepEqual(await requestToken(undefined, 'start', clock, never), { ok: true, token: null })
  })
})

test('delay grows to a bound, respects Retry-After and varies', () => {
  const least = [1, 2, 3, 4, 5, 6, 7, 8].map((failures) => backoff(failures, null, 0))
  assert.deepEqual(least, [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000])
  assert.equal(backoff(1, 5000, 0), 5000)
  assert.equal(backoff(1, null, 0.5), 1500)
  assert.equal(backoff(1, 1e15, 0), 3_600_000)
  assert.equal(backoff(0, 123, 0), 123)
  assert.ok(Number.isFinite(backoff(100_000, null, 0.5)))
})

test('ids are version 7 UUIDs that grow with time', () => {
  const ids = Array.from({ length: 100 }, () => clock.uuid())
  for (const id of ids) assert.match(id, /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/)
  assert.equal(new Set(ids).size, 100)
  const times = ids.map((id) => id.slice(0, 13))
  assert.deepEqual(times, [...times].sort())
})
