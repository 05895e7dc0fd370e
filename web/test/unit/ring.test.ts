import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Ring, Tails } from '../../api/ring'

const columns = ['at', 'age_seconds', 'uploads_applied']
const history = (rows: (number | null)[][]) => ({ columns, seconds: 1, rows })

test('the ring keeps the newest rows up to its capacity', () => {
  const ring = new Ring(3)
  ring.merge(history([]))
  for (let at = 1; at <= 5; at += 1) ring.push([at, at / 10, 0])
  assert.deepEqual(ring.column('at'), [3, 4, 5])
  assert.equal(ring.last('age_seconds'), 0.5)
})

test('a row that is not newer than the last one is left out', () => {
  const ring = new Ring()
  ring.merge(history([[10, 1, 0]]))
  const { version } = ring
  ring.push([10, 2, 0])
  ring.push([null, 2, 0])
  assert.deepEqual([ring.length, ring.version], [1, version])
})

test('a row right after another one is left out, and the newest value is found', () => {
  const ring = new Ring()
  ring.merge(history([[10, 1, 0]]))
  ring.push([10.05, 2, 0])
  ring.push([11, null, 0])
  assert.deepEqual(ring.column('at'), [10, 11])
  assert.deepEqual([ring.recent('age_seconds', 2), ring.recent('age_seconds', 1)], [1, null])
})

test('a pause becomes a row without values, so that the line breaks', () => {
  const ring = new Ring()
  ring.merge(history([[10, 1, 0]]))
  ring.push([20, 2, 0])
  assert.deepEqual(ring.column('at'), [10, 11, 20])
  assert.deepEqual(ring.column('age_seconds'), [1, null, 2])
})

test('the history of a restarted engine keeps the rows before it', () => {
  const ring = new Ring()
  ring.merge(
    history([
      [1, 0.1, 0],
      [2, 0.2, 0],
      [3, 0.3, 0],
    ]),
  )
  ring.merge(
    history([
      [3, 0.9, 0],
      [4, 0.4, 0],
    ]),
  )
  assert.deepEqual(ring.column('at'), [1, 2, 3, 4])
  assert.deepEqual(ring.column('age_seconds'), [0.1, 0.2, 0.9, 0.4])
})

test('a history with other columns replaces everything', () => {
  const ring = new Ring()
  ring.merge(history([[1, 0.1, 0]]))
  ring.merge({ columns: ['at', 'streams_open'], seconds: 1, rows: [[5, 7]] })
  assert.deepEqual([ring.column('at'), ring.column('streams_open'), ring.column('age_seconds')], [[5], [7], [null]])
})

test('sums are by the clock, and a minute without values has none', () => {
  const ring = new Ring()
  ring.merge(
    history([
      [59, 0, 2],
      [60, 0, 3],
      [61, 0, 4],
      [120, 0, null],
    ]),
  )
  assert.deepEqual(ring.sums('uploads_applied', 60), { at: [0, 60, 120], sums: [2, 7, null] })
})

test('charts show as much time as there is history, in three steps', () => {
  const span = (last: number): number => {
    const ring = new Ring()
    ring.merge(
      history([
        [1000, 0, 0],
        [1000 + last, 0, 0],
      ]),
    )
    return ring.span
  }
  assert.deepEqual([new Ring().span, span(40), span(121), span(301), span(900)], [120, 120, 300, 900, 900])
})

test('tails forget names that no longer exist', () => {
  const tails = new Tails(2)
  for (const value of [1, 2, 3]) tails.push('a', value)
  tails.push('b', 1)
  tails.retain(new Set(['a']))
  assert.deepEqual([tails.of('a'), tails.of('b')], [[2, 3], []])
})
