import assert from 'node:assert/strict'
import { test } from 'node:test'
import { age, bytes, count, dateTime, decimal, detailText, duration, instant, milliseconds, shortId } from '../../parts/format'

test('sizes have one decimal and binary units', () => {
  for (const [size, text] of [
    [0, '0 B'],
    [1023, '1023 B'],
    [1536, '1.5 KiB'],
    [1024 * 1024 - 1, '1.0 MiB'],
    [64 * 1024 ** 2, '64.0 MiB'],
    [3 * 1024 ** 4, '3.0 TiB'],
    [null, '–'],
  ] as const) {
    assert.equal(bytes(size), text)
  }
})

test('durations have their two greatest parts', () => {
  for (const [seconds, text] of [
    [-1, '0.0 s'],
    [0.4, '0.4 s'],
    [9.96, '10 s'],
    [59.6, '1 min'],
    [175, '2 min 55 s'],
    [7500, '2 h 5 min'],
    [12 * 86_400 + 3 * 3600, '12 d 3 h'],
    [1e11, 'centuries'],
    [undefined, '–'],
  ] as const) {
    assert.equal(duration(seconds), text)
  }
})

test('ages count whole seconds and never go below zero', () => {
  assert.deepEqual([age(-0.2), age(3.9), age(59.7), age(61)], ['0 s', '3 s', '1 min', '1 min 1 s'])
})

test('milliseconds become seconds from one second on', () => {
  assert.deepEqual([milliseconds(0.42), milliseconds(12.4), milliseconds(2500)], ['0.4 ms', '12 ms', '2.5 s'])
})

test('numbers are grouped and small rates have a decimal', () => {
  assert.deepEqual([decimal(0), decimal(0.25), decimal(1234.5)], ['0', '0.3', '1,235'])
  assert.deepEqual([count(1, 'change'), count(2, 'entry', 'entries')], ['1 change', '2 entries'])
})

test('a time is read from RFC 3339 or from seconds, and anything else is no time', () => {
  assert.equal(instant('2026-11-29T14:03:22Z'), 1_795_961_002_000)
  assert.equal(instant(1_795_961_002), 1_795_961_002_000)
  assert.deepEqual([instant(null), instant('yesterday')], [null, null])
})

test('the day is shown unless it is today', () => {
  const noon = new Date(2026, 10, 29, 12, 0, 0).getTime()
  assert.equal(dateTime(noon, noon + 3_600_000), '12:00:00')
  assert.equal(dateTime(noon, noon + 86_400_000), '2026-11-29 12:00:00')
})

test('details are names with values, and long ids are short', () => {
  const detail = { device_id: '0192a3f4-7c1e-7abc-9d00-000000001001', is_new: true, by: 'link' }
  assert.equal(detailText(detail), 'device id 0192…001001, is new true, by link')
  assert.deepEqual([detailText({}), detailText(null), detailText('text')], ['', '', 'text'])
})

test('a short id stays as it is and a long one keeps both ends', () => {
  assert.equal(shortId('phone-1'), 'phone-1')
  assert.equal(shortId('0192a3f4-7c1e-7abc-9d00-000000001001'), '0192…001001')
})
