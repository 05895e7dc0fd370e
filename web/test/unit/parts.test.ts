import assert from 'node:assert/strict'
import { test } from 'node:test'
import { linkOf } from '../../api/session'
import { url } from '../../api/client'
import { TraceList, TRACE_MAX } from '../../api/trace'
import type { TraceChange } from '../../api/types'
import { href, parsePlace } from '../../console/location'
import { isStale } from '../../parts/stale'
import { sparklinePath } from '../../parts/sparkline'
import { sorted, type ColumnOf } from '../../parts/table'

test('a place survives the way through the address', () => {
  const address = href('devices', { tenant: 'a b&c', user: '', device: null, sort: '-rows' })
  assert.equal(address, '#/devices?tenant=a+b%26c&sort=-rows')
  assert.deepEqual(parsePlace(address), { path: 'devices', params: { tenant: 'a b&c', sort: '-rows' } })
})

test('an empty address is the first place', () => {
  assert.deepEqual(parsePlace(''), { path: '', params: {} })
  assert.deepEqual(parsePlace('#/'), { path: '', params: {} })
})

test('only a fragment with a link is one', () => {
  assert.equal(linkOf('#link=abc-DEF_1.2~%2B'), 'abc-DEF_1.2~+')
  for (const other of ['', '#/slots', '#link=', '#link=a/b', '#/now?link=abc']) assert.equal(linkOf(other), null)
})

test('names are encoded in paths, and parameters without a value are left out', () => {
  assert.equal(
    url(['tenants', 'a/b', 'devices'], { user: '', all: false, limit: 50 }),
    '/admin/api/tenants/a%2Fb/devices?limit=50',
  )
})

test('a value is stale after 3 s, and without a value', () => {
  assert.deepEqual([isStale(null, 0), isStale(1000, 4000), isStale(1000, 4001)], [true, false, true])
})

test('rows without a value come last in both directions', () => {
  const columns: ColumnOf<{ n: number | null }>[] = [{ key: 'n', head: 'N', cell: () => '', sort: (row) => row.n }]
  const rows = [{ n: null }, { n: 2 }, { n: 10 }]
  const order = (name: string) => sorted(rows, columns, name).map((row) => row.n)
  assert.deepEqual([order('n'), order('-n'), order('other')], [[2, 10, null], [10, 2, null], [null, 2, 10]])
})

test('a line begins at zero and breaks where values are missing', () => {
  assert.equal(sparklinePath([0, 10, null, 10], 30, 12), 'M0.0 11.0L10.0 1.0M30.0 1.0')
  assert.equal(sparklinePath([], 30, 12), '')
})

const change = (id: string): TraceChange => ({
  id,
  tenant: 'a',
  table: 't',
  op: 'insert',
  row_id: '1',
  commit_lsn: '0/1',
  committed_at: 0,
  xid: 1,
  columns: [],
})

test('steps join their change, also of several rows with one entry', () => {
  const list = new TraceList()
  list.change(change('1-1'))
  list.change(change('1-1'))
  list.step({ id: '1-1', step: 'durable', device: null, user: null, ms: 3 })
  list.step({ id: '9-9', step: 'durable', device: null, user: null, ms: 3 })
  assert.deepEqual(
    list.items.map((item) => item.kind === 'change' && item.steps.length),
    [1, 1],
  )
})

test('the trace keeps the newest changes, newest first', () => {
  const list = new TraceList()
  for (let at = 0; at < TRACE_MAX + 5; at += 1) list.change(change(`${at}-1`))
  list.gap('a/changes')
  assert.deepEqual([list.items.length, list.received], [TRACE_MAX, TRACE_MAX + 5])
  assert.deepEqual([list.items[0]?.kind, list.items[1]?.id], ['gap', `${TRACE_MAX + 4}-1`])
})
