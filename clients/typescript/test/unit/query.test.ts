import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import type { JsonObject } from '../../src/json.js'
import { createQuery, type QueryHost, type QueryOptions } from '../../src/tables/query.js'
import { View } from '../../src/tables/view.js'
import { compileOrder, compileWhere } from '../../src/tables/where.js'

type Row = { readonly id: string; readonly n: number | null; readonly text: string; readonly done: boolean }

function host(view: View, reported: unknown[] = []): QueryHost & { run(): void } {
  const timers: (() => void)[] = []
  return {
    view,
    load: async (table) => {
      view.load(table, [])
      return null
    },
    hasSynced: () => true,
    onStatus: () => () => {},
    schedule: (run) => {
      timers.push(run)
      return () => void timers.splice(timers.indexOf(run), 1)
    },
    report: (error) => reported.push(error),
    run: () => timers.splice(0).forEach((run) => run()),
  }
}

function apply(view: View, rows: Record<string, JsonObject | null>): void {
  view.apply(
    Object.entries(rows).map(([id, row]) => ['tasks', id, row && { row: { id, ...row }, generation: 0 }]),
    [],
    null,
  )
}

/** Listeners are called in a later microtask. */
const notified = () => new Promise<void>((resolve) => setImmediate(resolve))

describe('query', () => {
  test('snapshot keeps its reference until its rows change', async () => {
    const view = new View()
    const query = createQuery<Row>(host(view), 'tasks', { where: { done: false }, orderBy: 'n' })
    let calls = 0
    query.subscribe(() => (calls += 1))
    await notified()
    apply(view, { a: { n: 2, done: false }, b: { n: 1, done: false } })
    const first = query.getSnapshot()
    assert.deepEqual(
      first.rows.map(({ id }) => id),
      ['b', 'a'],
    )
    apply(view, { c: { n: 3, done: true } })
    assert.equal(query.getSnapshot(), first)
    await notified()
    const before = calls
    apply(view, { c: { n: 0, done: true } })
    await notified()
    assert.equal(calls, before)
    apply(view, { b: { n: 5, done: false } })
    // A row that did not change keeps its reference.
    assert.equal(query.getSnapshot().rows[0], first.rows[1])
  })

  test('listener that throws does not stop the others and is reported', async () => {
    const [view, reported] = [new View(), [] as unknown[]]
    const query = createQuery<Row>(host(view, reported), 'tasks', {})
    let calls = 0
    query.subscribe(() => {
      throw new Error('of the app')
    })
    query.subscribe(() => (calls += 1))
    await notified()
    assert.equal(reported.length, 1)
    assert.equal(calls, 1)
  })

  test('last subscriber stops the query after a while, unless another one comes', async () => {
    const view = new View()
    const timers = host(view)
    const query = createQuery<Row>(timers, 'tasks', {})
    const stop = query.subscribe(() => {})
    await notified()
    apply(view, { a: { n: 1 } })
    stop()
    stop()
    const stopAgain = query.subscribe(() => {})
    timers.run()
    assert.equal(query.getSnapshot().rows.length, 1)
    stopAgain()
    timers.run()
    assert.deepEqual(query.getSnapshot(), { rows: [], phase: 'loading', error: null })
    assert.equal(view.isFollowed('tasks'), false)
  })

  test('limit shows the first rows, also when one of them goes', async () => {
    const view = new View()
    const query = createQuery<Row>(host(view), 'tasks', { orderBy: ['n', 'desc'], limit: 2 })
    query.subscribe(() => {})
    await notified()
    apply(view, { a: { n: 1 }, b: { n: 2 }, c: { n: 3 }, d: { n: null } })
    assert.deepEqual(
      query.getSnapshot().rows.map(({ id }) => id),
      ['c', 'b'],
    )
    apply(view, { c: null })
    assert.deepEqual(
      query.getSnapshot().rows.map(({ id }) => id),
      ['b', 'a'],
    )
    apply(view, { a: null })
    // Nulls come last.
    assert.deepEqual(
      query.getSnapshot().rows.map(({ id }) => id),
      ['b', 'd'],
    )
  })

  test('changes one by one give the same rows as a query from the beginning', () => {
    const row = fc.record({
      n: fc.option(fc.integer({ min: 0, max: 3 })),
      text: fc.constantFrom('a', 'b'),
      done: fc.boolean(),
    })
    const change = fc.tuple(fc.constantFrom(...'abcdefghijkl'), fc.option(row, { freq: 4 }))
    const options: QueryOptions<Row> = {
      where: { done: false, n: { gte: 1 } },
      orderBy: [
        ['n', 'desc'],
        ['text', 'asc'],
      ],
      limit: 4,
    }
    fc.assert(
      fc.property(fc.array(change, { maxLength: 60, size: 'max' }), (changes) => {
        const view = new View()
        const query = createQuery<Row>(host(view), 'tasks', options)
        query.subscribe(() => {})
        view.load('tasks', [])
        const rows = new Map<string, JsonObject>()
        for (const [id, columns] of changes) {
          apply(view, { [id]: columns })
          if (columns) rows.set(id, { id, ...columns })
          else rows.delete(id)
          const wanted = [...rows.values()]
            .filter(compileWhere(options.where))
            .sort(compileOrder(options.orderBy))
            .slice(0, 4)
          assert.deepEqual(query.getSnapshot().rows, wanted)
        }
      }),
    )
  })
})

describe('where', () => {
  const rows: JsonObject[] = [{ id: 'a', n: 1 }, { id: 'b', n: 5 }, { id: 'c', n: null }, { id: 'd' }]
  const cases: [QueryOptions<Row>['where'], string[]][] = [
    [undefined, ['a', 'b', 'c', 'd']],
    [{ n: 1 }, ['a']],
    [{ n: null }, ['c', 'd']],
    [{ n: { ne: 1 } }, ['b', 'c', 'd']],
    [{ n: { in: [1, 5] } }, ['a', 'b']],
    [{ n: { gt: 1 } }, ['b']],
    [{ n: { gte: 1, lt: 5 } }, ['a']],
    [{ n: { lte: 5 } }, ['a', 'b']],
    [(row) => row.n === 5, ['b']],
  ]
  for (const [where, ids] of cases) {
    test(`${typeof where === 'function' ? 'function' : (JSON.stringify(where) ?? 'none')} finds ${ids.join(', ') || 'nothing'}`, () => {
      assert.deepEqual(
        rows.filter(compileWhere<Row>(where)).map(({ id }) => id),
        ids,
      )
    })
  }
})
