import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { difference, reuse } from '../../src/outbox/difference.js'
import type { Item } from '../../src/outbox/item.js'

function item(seq: number, key = `k${seq}`): Item {
  return {
    key,
    seq,
    table: 'tasks',
    op: 'create',
    id: key,
    row: {},
    baseSeq: null,
    baseVersion: null,
    at: '',
    sent: 'no',
  }
}

test('what is removed and added turns one outbox into the other', () => {
  const pool = Array.from({ length: 12 }, (_, n) => item(n))
  const outbox = fc.subarray(pool)
  fc.assert(
    fc.property(outbox, outbox, (before, after) => {
      const [removed, added] = difference(before, after)
      const rest = before.filter((each) => !removed.includes(each))
      assert.deepEqual(
        [...rest, ...added].sort((one, other) => one.seq - other.seq),
        after,
      )
    }),
  )
  assert.deepEqual(difference([item(1)], [item(1)]).flat().length, 2)
})

test('outbox that was read again keeps the objects that have not changed', () => {
  const former = [item(1), item(2)]
  assert.equal(reuse([item(1), item(2)], former), former)
  const [first, second, third] = reuse([item(1), { ...item(2), sent: 'yes' }, item(3)], former)
  assert.equal(first, former[0])
  assert.notEqual(second, former[1])
  assert.equal(third?.seq, 3)
  assert.notEqual(reuse([item(2)], former), former)
})
