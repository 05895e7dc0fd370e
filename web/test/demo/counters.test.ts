import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { countTagged, findDoubled, findLosses, Order, type Rows } from '../../demo/model/counters'

const NONE: Rows = { tasks: [], messages: [], lists: [] }

const task = (id: string, version: number, title = 'Milk', done = false) => ({ id, version, title, done })

describe('lost', () => {
  test('equal_rows_are_no_loss', () => {
    const rows = { ...NONE, tasks: [task('a', 1), task('b', 3)], messages: [{ id: 'm', version: 1, content: 'hi' }] }
    assert.deepEqual(findLosses(rows, structuredClone(rows)), [])
  })

  test('missing_and_older_rows_are_losses', () => {
    const truth = { ...NONE, tasks: [task('a', 2), task('b', 1)] }
    const losses = findLosses(truth, { ...NONE, tasks: [task('a', 1)] })
    assert.deepEqual(losses, [
      { table: 'tasks', id: 'a', what: 'older' },
      { table: 'tasks', id: 'b', what: 'missing' },
    ])
  })

  test('same_version_with_other_content_is_a_loss', () => {
    const truth = { ...NONE, tasks: [task('a', 1, 'Milk', true)] }
    assert.equal(findLosses(truth, { ...NONE, tasks: [task('a', 1, 'Milk', false)] })[0]?.what, 'different')
  })

  test('newer_row_than_the_truth_is_no_loss', () => {
    assert.deepEqual(findLosses({ ...NONE, tasks: [task('a', 1)] }, { ...NONE, tasks: [task('a', 2, 'Oat')] }), [])
  })

  test('deletion_that_did_not_arrive_is_a_loss', () => {
    const losses = findLosses(NONE, { ...NONE, tasks: [task('a', 1)] })
    assert.deepEqual(losses, [{ table: 'tasks', id: 'a', what: 'deleted there, shown here' }])
  })

  test('columns_that_the_truth_lacks_are_not_compared', () => {
    const truth = { ...NONE, messages: [{ id: 'm', version: 1, content: 'hi' }] }
    const shown = { ...NONE, messages: [{ id: 'm', version: 1, content: 'hi', revision: 4 }] }
    assert.deepEqual(findLosses(truth, shown), [])
  })
})

describe('doubled', () => {
  test('tag_in_two_rows_is_doubled', () => {
    const truth = { ...NONE, tasks: [task('a', 1, 'Milk #ab12'), task('b', 1, 'Milk #ab12')] }
    assert.deepEqual(findDoubled(truth, new Set(['ab12'])), ['ab12'])
  })

  test('tag_of_another_page_is_not_counted', () => {
    const truth = { ...NONE, tasks: [task('a', 1, 'Milk #ab12'), task('b', 1, 'Milk #ab12')] }
    assert.deepEqual(findDoubled(truth, new Set(['zz99'])), [])
  })

  test('equal_texts_with_own_tags_are_two_changes', () => {
    const truth = { ...NONE, tasks: [task('a', 1, 'Milk #ab12'), task('b', 1, 'Milk #cd34')] }
    assert.deepEqual(findDoubled(truth, new Set(['ab12', 'cd34'])), [])
  })

  test('rows_are_counted_by_tag_in_both_tables', () => {
    const truth = {
      ...NONE,
      tasks: [task('a', 1, 'Milk #ab12')],
      messages: [{ id: 'm', version: 1, content: 'hello #cd34' }],
    }
    assert.deepEqual(countTagged(truth, ['ab12', 'cd34', 'ef56']), [1, 1, 0])
  })
})

describe('out of order', () => {
  test('first_rows_are_not_seen_arriving', () => {
    const order = new Order()
    assert.deepEqual(order.observe('tasks', [task('a', 5)]), [])
    assert.equal(order.backwards, 0)
  })

  test('new_changed_and_gone_rows_are_seen', () => {
    const order = new Order()
    order.observe('tasks', [task('a', 1), task('b', 1)])
    const seen = order.observe('tasks', [task('a', 2), task('c', 1)])
    assert.deepEqual(
      seen.map(({ id }) => id),
      ['a', 'c', 'b'],
    )
  })

  test('version_that_goes_back_is_counted', () => {
    const order = new Order()
    order.observe('tasks', [task('a', 3)])
    order.observe('tasks', [task('a', 2)])
    assert.equal(order.backwards, 1)
    order.observe('tasks', [task('a', 3)])
    assert.equal(order.backwards, 1)
  })

  test('row_that_comes_back_older_is_counted', () => {
    const order = new Order()
    order.observe('tasks', [task('a', 3)])
    order.observe('tasks', [])
    order.observe('tasks', [task('a', 2)])
    assert.equal(order.backwards, 1)
  })

  test('own_row_without_a_version_is_not_counted', () => {
    const order = new Order()
    order.observe('tasks', [])
    assert.deepEqual(order.observe('tasks', [{ id: 'a', title: 'new' }]), [])
    assert.deepEqual(order.observe('tasks', [task('a', 1)]), [{ table: 'tasks', id: 'a' }])
    assert.equal(order.backwards, 0)
  })

  test('revision_orders_messages_whose_version_stays', () => {
    const order = new Order()
    order.observe('messages', [{ id: 'm', version: 1, revision: 3 }])
    order.observe('messages', [{ id: 'm', version: 1, revision: 2 }])
    assert.equal(order.backwards, 1)
  })
})
