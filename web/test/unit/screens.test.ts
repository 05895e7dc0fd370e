import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { QuarantineEntry, SlotReport } from '../../api/types'
import { secondsOf } from '../../console/screens/pipeline'
import { causesOf } from '../../console/screens/quarantine'
import { momentsOf } from '../../console/screens/row-life'
import { growthText, levelOf, shareText } from '../../console/screens/slots'
import { causesOfRejections, linesOf } from '../../console/screens/uploads'
import { stack } from '../../parts/stack'

const slot = (part: Partial<SlotReport>): SlotReport =>
  ({ name: 'a', verdict: 'in use', lost_in_seconds: null, wal_bytes_per_second: null, ...part }) as SlotReport

test('the growth of a slot needs some seconds, and small steps count as steady', () => {
  assert.equal(growthText([1, 2]), '')
  assert.equal(growthText([0, 0, 100, 100, 100]), 'steady')
  assert.equal(growthText([0, 4096, 8192, 12_288, 16_384]), 'grows 4.0 KiB/s')
  assert.equal(growthText([16_384, 12_288, 8192, 4096, 0]), 'shrinks 4.0 KiB/s')
})

test('a slot that is lost soon is a failure, later a warning, and one in use is in order', () => {
  assert.equal(levelOf(slot({})), 'ok')
  assert.equal(levelOf(slot({ lost_in_seconds: 7200 })), 'warn')
  assert.equal(levelOf(slot({ lost_in_seconds: 60 })), 'fail')
  assert.equal(levelOf(slot({ verdict: 'lost' })), 'fail')
  assert.equal(levelOf(slot({ verdict: 'no engine reads it' })), 'warn')
})

test('a share that is not zero is not shown as zero', () => {
  assert.deepEqual([shareText(0), shareText(0.001), shareText(0.126)], ['0 %', '< 1 %', '13 %'])
})

test('bytes become seconds only at a known rate', () => {
  assert.deepEqual(
    [secondsOf(null, 100), secondsOf(0, null), secondsOf(50, null), secondsOf(1, 100), secondsOf(500, 100)],
    [null, '0.0 s', null, '< 0.1 s', '≈ 5.0 s'],
  )
})

test('causes of the quarantine are counted, the most frequent first', () => {
  const entries = ['a', 'b', 'b'].map((cause) => ({ cause }) as QuarantineEntry)
  assert.deepEqual(causesOf(entries), [
    ['b', 2],
    ['a', 1],
  ])
})

test('causes of rejections are listed, the most frequent first', () => {
  assert.deepEqual(causesOfRejections({ FORBIDDEN: 1, NOT_FOUND: 3 }), [
    ['NOT_FOUND', 3],
    ['FORBIDDEN', 1],
  ])
})

test('the moments of a change are in their order and begin with the commit', () => {
  const step = { id: '1', device: null, user: null }
  const moments = momentsOf([
    { ...step, step: 'delivered', device: 'phone-1', ms: 5 },
    { ...step, step: 'durable', ms: 3 },
  ])
  assert.deepEqual(
    moments.map(({ name, who }) => [name, who]),
    [
      ['committed', null],
      ['durable', null],
      ['delivered', 'device phone-1'],
    ],
  )
})

test('a conflict shows the columns that the device changed first', () => {
  const server = { id: '1', note: null, title: 'black' }
  const lines = [
    { name: 'title', server: 'black', client: 'brass', differs: true },
    { name: 'id', server: '1', client: null, differs: false },
    { name: 'note', server: 'null', client: null, differs: false },
  ]
  assert.deepEqual(linesOf({ server, client: { op: 'update', title: 'brass' } }), lines)
  assert.deepEqual(linesOf({ server, client: { op: 'update', row: { title: 'brass' } } }), lines, 'of an own table')
})

test('bars stand on those before them, also where a value is missing', () => {
  assert.deepEqual(
    stack([
      [1, 2, null],
      [10, null, null],
      [100, 100, null],
    ]),
    [
      [1, 2, null],
      [11, 2, null],
      [111, 102, null],
    ],
  )
})
