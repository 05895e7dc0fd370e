// Each test is a line of the tables in docs/sync-protocol.md, under the name that the line has there.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { describe, test } from 'node:test'
import { wireItem } from '../../src/outbox/item.js'
import { insert, membership, message, remove, Scene, shared, task } from './scene.js'

const names: string[] = []

function state(name: string, tests: Record<string, () => void>): void {
  describe(name, () => {
    for (const [line, run] of Object.entries(tests)) {
      names.push(`${name}::${line}`)
      test(line, run)
    }
  })
}

state('unenrolled', {
  enrollment_response_stores_token_and_user() {
    const scene = Scene.unenrolled()
    scene.do({ type: 'enroll', enrollment: { by: 'code', token: 'code' }, freshId: 'device-1' })
    const step = scene.do({
      type: 'enrolled',
      ticket: scene.request.ticket,
      userId: 'user-1',
      deviceId: 'device-1',
      token: 'secret',
    })
    assert.equal(scene.phase, 'fresh')
    assert.deepEqual(
      [step.state.device.token, step.state.device.userId, step.state.device.enrollment],
      ['secret', 'user-1', null],
    )
  },
  missing_response_repeats_enrollment() {
    const scene = Scene.unenrolled()
    const first = scene.do({ type: 'enroll', enrollment: { by: 'code', token: 'code' }, freshId: 'device-1' })
    // Both are in the transaction that precedes the request.
    assert.deepEqual([first.state.device.enrollment?.token, first.state.device.deviceId], ['code', 'device-1'])
    const request = scene.request
    scene.lose()
    assert.equal(scene.phase, 'unenrolled')
    scene.crash()
    assert.deepEqual({ ...scene.request, ticket: 0 }, { ...request, ticket: 0 })
    scene.lose()
    scene.retry('auth')
    assert.deepEqual({ ...scene.request, ticket: 0 }, { ...request, ticket: 0 })
  },
  refused_enrollment_needs_a_new_one() {
    for (const [status, code] of [
      [400, 'ENROLLMENT_USED'],
      [400, 'ENROLLMENT_EXPIRED'],
      [404, 'NOT_FOUND'],
    ] as const) {
      const scene = Scene.unenrolled()
      scene.do({ type: 'enroll', enrollment: { by: 'code', token: 'code' }, freshId: 'device-1' })
      scene.refuse(status, code)
      assert.equal(scene.state.busy, null)
      assert.equal(scene.state.device.enrollment, null)
      assert.equal(scene.state.device.refusal?.code, code)
      scene.taken()
      scene.sync()
      assert.deepEqual(scene.taken(), [])
    }
  },
  same_user_keeps_rows_cursor_and_outbox() {
    const scene = Scene.stream()
    scene.write('edit', 'tasks', 't1', { title: 'soy milk' })
    scene.end()
    scene.do({ type: 'enroll', enrollment: { by: 'code', token: 'other' }, freshId: 'unused' })
    scene.enrolled('user-1')
    assert.equal(scene.phase, 'stream')
    assert.deepEqual(scene.ids('tasks'), ['t1', 't2'])
    assert.equal(scene.outbox().length, 1)
    assert.equal(scene.state.device.deviceId, 'device-1')
  },
  other_user_deletes_rows_cursor_and_outbox() {
    const scene = Scene.stream()
    scene.write('edit', 'tasks', 't1', { title: 'refused' })
    scene.answer({ status: 'rejected', message: 'no' })
    scene.write('edit', 'tasks', 't1', { title: 'waiting' })
    scene.end()
    scene.do({ type: 'enroll', enrollment: { by: 'code', token: 'other' }, freshId: 'unused' })
    scene.refuse(409, 'CONFLICT')
    const request = scene.request
    assert.ok(request.type === 'enroll' && request.deviceId !== 'device-1')
    scene.enrolled('user-2')
    assert.equal(scene.phase, 'fresh')
    const { cursor, ackedSeq, lastEventId } = scene.state.device
    assert.deepEqual([cursor, ackedSeq, lastEventId], [null, 0, null])
    assert.deepEqual([scene.rows.size, scene.results.size, scene.outbox()], [0, 0, []])
  },
  sync_without_token_sends_nothing() {
    const scene = Scene.unenrolled()
    scene.sync()
    assert.deepEqual(scene.taken(), [])
  },
  user_write_goes_to_outbox() {
    const scene = Scene.unenrolled()
    scene.write('create', 'tasks', 't1', { title: 'milk' })
    assert.deepEqual(
      scene.outbox().map(({ seq, sent }) => [seq, sent]),
      [[1, 'no']],
    )
    assert.deepEqual(scene.taken(), [])
  },
})

state('fresh', {
  complete_snapshot_is_stored() {
    const scene = Scene.stream()
    scene.refuseCursor()
    assert.equal(scene.phase, 'fresh')
    scene.batch({ reset: true, cursor: 'c2', changes: [insert('t2', task('rye'))] })
    assert.equal(scene.phase, 'stream')
    assert.deepEqual([scene.ids('tasks'), scene.ids('messages')], [['t2'], []])
  },
  first_snapshot_page_is_stored_with_cursor() {
    const scene = Scene.stream()
    scene.refuseCursor()
    scene.batch({ reset: true, hasMore: true, cursor: 'c2', changes: [insert('t3', task('rye'))] })
    assert.equal(scene.phase, 'snapshot')
    // Old rows stay visible.
    assert.deepEqual(scene.ids('tasks'), ['t1', 't2', 't3'])
    assert.ok(scene.request.type === 'fetch' && scene.request.cursor === 'c2')
  },
  missing_response_repeats_request() {
    const scene = Scene.fresh()
    const request = scene.request
    scene.lose()
    assert.equal(scene.phase, 'fresh')
    scene.retry('down')
    assert.deepEqual({ ...scene.request, ticket: 0 }, { ...request, ticket: 0 })
  },
  retry_after_delays_request() {
    retryAfterDelays(Scene.fresh(), 'fresh')
  },
  ended_token_is_deleted() {
    const scene = Scene.fresh()
    scene.end()
    assert.equal(scene.phase, 'unenrolled')
  },
  user_write_goes_to_outbox() {
    const scene = Scene.fresh()
    scene.write('create', 'tasks', 't1', { title: 'milk' })
    scene.lose()
    // Uploads need no cursor.
    assert.deepEqual(
      scene.uploading.map(({ seq }) => seq),
      [1],
    )
    assert.equal(scene.phase, 'fresh')
  },
})

state('snapshot', {
  page_is_stored_with_cursor() {
    const scene = Scene.snapshot()
    scene.batch({ hasMore: true, cursor: 'c2', messages: [message('m2')] })
    assert.equal(scene.phase, 'snapshot')
    assert.deepEqual(scene.ids('messages'), ['m1', 'm2'])
    assert.equal(scene.state.device.cursor, 'c2')
    assert.ok(scene.request.type === 'fetch' && scene.request.cursor === 'c2')
  },
  last_page_deletes_unmentioned_rows() {
    const scene = Scene.stream()
    scene.refuseCursor()
    scene.batch({ reset: true, hasMore: true, cursor: 'c2', messages: [message('m1')] })
    assert.deepEqual(scene.ids('tasks'), ['t1', 't2'])
    scene.batch({ cursor: 'c3', changes: [insert('t1', task('milk'))] })
    assert.equal(scene.phase, 'stream')
    assert.deepEqual([scene.ids('tasks'), scene.ids('messages')], [['t1'], ['m1']])
  },
  missing_response_repeats_request() {
    const scene = Scene.snapshot()
    scene.lose()
    assert.equal(scene.phase, 'snapshot')
    scene.retry('down')
    assert.ok(scene.request.type === 'fetch' && scene.request.cursor === 'c1')
  },
  new_snapshot_keeps_old_rows_until_its_end() {
    const scene = Scene.snapshot()
    scene.batch({ reset: true, hasMore: true, cursor: 'd1', messages: [message('m2')] })
    assert.deepEqual(scene.ids('messages'), ['m1', 'm2'])
    scene.batch({ cursor: 'd2' })
    assert.deepEqual(scene.ids('messages'), ['m2'])
  },
  refused_cursor_is_deleted() {
    const scene = Scene.snapshot()
    const key = scene.write('create', 'tasks', 't1', { title: 'milk' })
    scene.refuse(400, 'INVALID_CURSOR')
    assert.equal(scene.phase, 'fresh')
    assert.deepEqual(scene.ids('messages'), ['m1'])
    assert.deepEqual(
      scene.outbox().map((item) => item.key),
      [key],
    )
  },
  ended_token_is_deleted() {
    const scene = Scene.snapshot()
    scene.end()
    assert.equal(scene.phase, 'unenrolled')
    assert.deepEqual(scene.ids('messages'), ['m1'])
    assert.equal(scene.state.device.cursor, 'c1')
  },
  retry_after_delays_request() {
    retryAfterDelays(Scene.snapshot(), 'snapshot')
  },
  killed_device_continues_from_stored_cursor() {
    const scene = Scene.snapshot()
    scene.crash()
    assert.equal(scene.phase, 'snapshot')
    assert.ok(scene.request.type === 'fetch' && scene.request.cursor === 'c1')
    scene.batch({ cursor: 'c2', messages: [message('m2')] })
    assert.deepEqual(scene.ids('messages'), ['m1', 'm2'])
  },
  user_write_goes_to_outbox() {
    const scene = Scene.snapshot()
    const key = scene.write('create', 'tasks', 't9', { title: 'milk' })
    scene.batch({ hasMore: true, cursor: 'c2' })
    // Between two pages the outbox goes first.
    assert.deepEqual(
      scene.uploading.map((item) => item.key),
      [key],
    )
    assert.equal(scene.seen('tasks', 't9')?.['title'], 'milk')
  },
})

state('stream', {
  rows_are_stored_and_acknowledged() {
    const scene = Scene.stream()
    scene.sync()
    scene.batch({ hasMore: true, cursor: 'c2', changes: [insert('t3', task('rye'))] })
    scene.batch({ cursor: 'c3', messages: [message('m2')] })
    assert.deepEqual(
      [scene.ids('tasks'), scene.ids('messages')],
      [
        ['t1', 't2', 't3'],
        ['m1', 'm2'],
      ],
    )
    const request = scene.request
    assert.ok(request.type === 'acknowledge' && request.cursor === 'c3')
  },
  deletes_remove_rows() {
    const scene = Scene.stream()
    scene.sync()
    scene.batch({ cursor: 'c2', changes: [remove('t1'), remove('m1', 'messages'), remove('never there')] })
    assert.deepEqual([scene.ids('tasks'), scene.ids('messages')], [['t2'], []])
  },
  empty_batch_stores_cursor() {
    const scene = Scene.stream()
    scene.sync()
    scene.batch({ cursor: 'c2' })
    assert.equal(scene.state.device.cursor, 'c2')
    assert.equal(scene.state.busy, null)
  },
  missing_response_repeats_request() {
    const scene = Scene.stream()
    scene.sync()
    scene.lose()
    scene.retry('down')
    assert.ok(scene.request.type === 'fetch' && scene.request.cursor === 'c1')
  },
  reset_starts_snapshot() {
    const scene = Scene.stream()
    scene.sync()
    scene.batch({ reset: true, hasMore: true, cursor: 'd1' })
    assert.equal(scene.phase, 'snapshot')
    assert.deepEqual(scene.ids('tasks'), ['t1', 't2'])
    scene.batch({ cursor: 'd2', changes: [insert('t1', task('milk'))] })
    assert.deepEqual(scene.ids('tasks'), ['t1'])
  },
  refused_cursor_is_deleted() {
    const scene = Scene.stream()
    scene.write('edit', 'tasks', 't1', { title: 'soy' })
    scene.lose()
    scene.sync('timer')
    scene.refuse(400, 'INVALID_CURSOR')
    assert.equal(scene.phase, 'fresh')
    assert.deepEqual([scene.ids('tasks'), scene.outbox().length], [['t1', 't2'], 1])
    assert.ok(scene.request.type === 'fetch' && scene.request.cursor === null)
  },
  ended_token_is_deleted() {
    const scene = Scene.stream()
    scene.sync()
    scene.end()
    assert.equal(scene.phase, 'unenrolled')
    assert.equal(scene.state.device.cursor, 'c1')
    assert.deepEqual(scene.ids('tasks'), ['t1', 't2'])
  },
  retry_after_delays_request() {
    const scene = Scene.stream()
    scene.sync()
    retryAfterDelays(scene, 'stream')
  },
  killed_device_continues_from_stored_cursor() {
    const scene = Scene.stream()
    scene.sync()
    scene.crash()
    assert.equal(scene.phase, 'stream')
    assert.ok(scene.request.type === 'fetch' && scene.request.cursor === 'c1')
  },
  restored_older_copy_catches_up_or_resets() {
    for (const reset of [false, true]) {
      const scene = Scene.stream()
      const restore = scene.copy()
      scene.sync()
      scene.batch({ cursor: 'c2', changes: [insert('t3', task('rye'))] })
      restore()
      assert.ok(scene.request.type === 'fetch' && scene.request.cursor === 'c1')
      scene.batch({ reset, hasMore: reset, cursor: 'c2', changes: [insert('t3', task('rye'))] })
      assert.equal(scene.phase, reset ? 'snapshot' : 'stream')
      assert.ok(scene.stored('tasks', 't3'))
    }
  },
  user_actions_go_to_outbox_with_seen_base() {
    const scene = Scene.stream()
    scene.write('create', 'tasks', 't9', { title: 'new' })
    scene.write('edit', 'tasks', 't1', { title: 'soy' })
    scene.write('edit', 'tasks', 't1', { title: 'oat' })
    scene.write('delete', 'tasks', 't9')
    scene.write('read', 'messages', 'm1')
    const bases = scene.outbox().map(({ seq, op, baseSeq, baseVersion }) => [seq, op, baseSeq, baseVersion])
    assert.deepEqual(bases, [
      [1, 'create', null, null],
      [2, 'edit', null, 1],
      [3, 'edit', 2, null],
      [4, 'delete', 1, null],
      [5, 'read', null, null],
    ])
  },
})

state('outbox', {
  applied_item_is_removed() {
    const scene = Scene.stream()
    scene.write('edit', 'tasks', 't1', { title: 'soy' })
    scene.answer({ seq: 1, version: 2 })
    assert.deepEqual(scene.outbox(), [])
    assert.deepEqual(scene.stored('tasks', 't1'), { id: 't1', title: 'soy', version: 2 })
    const edited = scene.write('edit', 'messages', 'm1', { content: 'other' })
    scene.answer({ seq: 2, version: 2, revision: 5 })
    assert.deepEqual(
      [scene.stored('messages', 'm1')?.['version'], scene.stored('messages', 'm1')?.['revision']],
      [2, 5],
    )
    assert.equal(scene.results.get(edited)?.status, 'applied')
  },
  first_result_of_a_repeated_item_is_shown_at_once() {
    const scene = Scene.stream()
    scene.write('edit', 'tasks', 't1', { title: 'soy' })
    scene.lose()
    scene.retry('up')
    scene.answer({ version: 2 })
    assert.equal(scene.seen('tasks', 't1')?.['title'], 'soy')
    scene.write('edit', 'tasks', 't1', { title: 'oat' })
    assert.equal(scene.outbox()[0]?.baseVersion, 2)
  },
  first_result_of_a_repeated_item_replaces_an_older_row() {
    const scene = Scene.stream()
    scene.write('edit', 'tasks', 't1', { title: 'soy' })
    scene.lose()
    scene.sync('timer')
    scene.batch({ cursor: 'c2', changes: [insert('t1', task('between', 2), 'update')] })
    scene.retry('up')
    scene.acknowledged()
    scene.answer({ version: 3 })
    assert.deepEqual(scene.stored('tasks', 't1'), { id: 't1', title: 'soy', version: 3 })
  },
  first_result_of_a_repeated_item_leaves_newer_rows() {
    const scene = Scene.stream()
    scene.write('edit', 'tasks', 't1', { title: 'soy' })
    scene.write('edit', 'messages', 'm1', { content: 'mine' })
    scene.write('edit', 'tasks', 't2', { title: 'rye' })
    scene.lose()
    scene.sync('timer')
    scene.batch({
      cursor: 'c2',
      messages: [message('m1', { content: 'newer', version: 3, revision: 4 })],
      changes: [insert('t1', task('newer', 3), 'update'), remove('t2')],
    })
    scene.acknowledged()
    scene.sync('user')
    scene.answer({ version: 2 }, { version: 2, revision: 2 }, { version: 2 })
    assert.deepEqual(scene.outbox(), [])
    assert.equal(scene.stored('tasks', 't1')?.['title'], 'newer')
    assert.equal(scene.stored('messages', 'm1')?.['content'], 'newer')
    assert.equal(scene.stored('tasks', 't2'), null)
  },
  merged_edit_stores_the_row_of_the_server() {
    const scene = Scene.stream()
    scene.write('edit', 'tasks', 't1', { title: 'soy' })
    scene.answer({ version: 3, server: { id: 't1', title: 'soy', done: true, version: 3 } })
    assert.deepEqual(scene.seen('tasks', 't1'), { id: 't1', title: 'soy', done: true, version: 3 })
    scene.write('delete', 'tasks', 't1', {})
    assert.equal(scene.outbox()[0]?.baseVersion, 3)
  },
  overtaken_result_leaves_the_row_to_the_batches() {
    const scene = Scene.stream()
    scene.write('create', 'tasks', 'w', { title: 'mine' })
    scene.write('edit', 'tasks', 't1', { title: 'soy' })
    scene.lose()
    scene.retry('up')
    const before = scene.stored('tasks', 't1')
    scene.answer({ version: 1, overtaken: true }, { version: 2, overtaken: true })
    assert.deepEqual(scene.outbox(), [])
    assert.equal(scene.stored('tasks', 'w'), null)
    assert.deepEqual(scene.stored('tasks', 't1'), before)
  },
  batches_behind_a_stored_result_leave_its_row() {
    const scene = Scene.stream()
    scene.write('edit', 'tasks', 't1', { title: 'mine' })
    scene.answer({ version: 3 })
    const receive = (version: number) => {
      if (!scene.state.busy) scene.sync()
      scene.batch({ cursor: `v${version}`, changes: [insert('t1', task(`version ${version}`, version), 'update')] })
      scene.acknowledged()
    }
    // The stream is still at what came before the edit.
    receive(2)
    assert.equal(scene.seen('tasks', 't1')?.['title'], 'mine')
    scene.write('edit', 'tasks', 't1', { title: 'mine again' })
    assert.equal(scene.outbox()[0]?.baseVersion, 3, 'its base is the own change')
    scene.answer({ version: 4 })
    // It reaches the last one, and from then on the last row that comes counts, whatever its number.
    receive(4)
    receive(1)
    assert.equal(scene.seen('tasks', 't1')?.['title'], 'version 1')
  },
  rows_of_own_tables_compare_by_version_only() {
    const scene = Scene.stream()
    scene.sync()
    scene.batch({ cursor: 'c2', changes: [insert('a', { ...task('first', 5), revision: 1 })] })
    scene.acknowledged()
    scene.write('edit', 'tasks', 'a', { title: 'mine' })
    scene.answer({ version: 6 })
    for (const [version, title] of [
      [5, 'mine'],
      [7, 'theirs'],
    ] as const) {
      scene.sync()
      scene.batch({ cursor: `d${version}`, changes: [insert('a', { ...task('theirs', version), revision: 1 }, 'update')] })
      scene.acknowledged()
      assert.equal(scene.seen('tasks', 'a')?.['title'], title)
    }
  },
  deleted_row_stays_away_until_batches_reach_its_deletion() {
    const scene = Scene.stream()
    scene.write('delete', 'tasks', 't1')
    scene.answer({ version: 2 })
    scene.write('delete', 'messages', 'm1')
    scene.answer({ version: 2, revision: 2 })
    scene.sync()
    scene.batch({ cursor: 'c2', messages: [message('m1')], changes: [insert('t1', task('milk'), 'update')] })
    assert.deepEqual([scene.ids('tasks'), scene.ids('messages')], [['t2'], []])
    scene.acknowledged()
    scene.sync()
    scene.batch({ cursor: 'c3', changes: [remove('t1'), remove('m1', 'messages')] })
    scene.acknowledged()
    assert.deepEqual([scene.ids('tasks'), scene.ids('messages')], [['t2'], []])
    scene.sync()
    scene.batch({ cursor: 'c4', changes: [insert('t1', task('created again'))] })
    assert.deepEqual(scene.ids('tasks'), ['t1', 't2'])
  },
  duplicate_item_is_removed() {
    const scene = Scene.stream()
    scene.write('edit', 'tasks', 't1', { title: 'soy' })
    scene.answer({ status: 'duplicate', version: 2 })
    assert.deepEqual(scene.outbox(), [])
  },
  conflict_under_last_write_wins_stores_own_version() {
    const scene = Scene.stream()
    scene.write('edit', 'messages', 'm1', { content: 'mine' })
    scene.answer({
      status: 'conflict',
      winner: 'mine',
      version: 3,
      revision: 3,
      server: message('m1', { content: 'mine', version: 3, revision: 3 }),
    })
    assert.deepEqual(scene.outbox(), [])
    assert.equal(scene.stored('messages', 'm1')?.['content'], 'mine')
  },
  conflict_under_manual_stores_other_version() {
    const scene = Scene.stream()
    const key = scene.write('edit', 'messages', 'm1', { content: 'mine' })
    scene.answer({
      status: 'conflict',
      winner: 'theirs',
      version: 2,
      conflictId: 'x',
      server: message('m1', { content: 'theirs', version: 2, revision: 3 }),
    })
    assert.equal(scene.stored('messages', 'm1')?.['content'], 'theirs')
    assert.deepEqual([scene.results.get(key)?.isOpen, scene.results.get(key)?.conflictId], [true, 'x'])
  },
  conflict_of_a_delete_removes_the_row() {
    const scene = Scene.stream()
    scene.write('delete', 'messages', 'm1')
    scene.write('delete', 'tasks', 't1')
    scene.answer({ status: 'conflict', winner: 'mine' }, { status: 'conflict', winner: 'theirs' })
    assert.equal(scene.stored('messages', 'm1'), null)
    // Batches bring the deletion of a row of an own table.
    assert.ok(scene.stored('tasks', 't1'))
  },
  result_about_a_deleted_row_does_not_hide_the_next_with_its_id() {
    for (const isSentBefore of [true, false]) {
      const scene = Scene.stream()
      if (!isSentBefore) scene.sync()
      scene.write('edit', 'messages', 'm1', { content: 'mine' })
      if (isSentBefore) {
        scene.lose()
        scene.sync('timer')
      }
      scene.batch({ cursor: 'c2', changes: [remove('m1', 'messages')] })
      if (isSentBefore) {
        scene.acknowledged()
        scene.sync('user')
      }
      scene.answer({ status: 'conflict', winner: 'theirs', revision: 7 })
      assert.deepEqual(scene.outbox(), [])
      if (!isSentBefore) scene.acknowledged()
      scene.sync()
      scene.batch({ cursor: 'c3', messages: [message('m1', { content: 'made again' })] })
      assert.equal(scene.stored('messages', 'm1')?.['content'], 'made again')
    }
  },
  several_edits_of_one_row_are_applied_in_order() {
    const scene = Scene.stream()
    scene.end()
    for (const title of ['a', 'b', 'c']) scene.write('edit', 'tasks', 't1', { title })
    scene.do({ type: 'enroll', enrollment: { by: 'code', token: 'other' }, freshId: 'unused' })
    scene.enrolled('user-1')
    assert.deepEqual(
      scene.uploading.map(({ baseSeq, baseVersion }) => [baseSeq, baseVersion]),
      [
        [null, 1],
        [1, null],
        [2, null],
      ],
    )
    scene.answer({ version: 2 }, { version: 3 }, { version: 4 })
    assert.deepEqual(scene.stored('tasks', 't1'), { id: 't1', title: 'c', version: 4 })
  },
  edits_after_a_lost_conflict_are_rejected() {
    const scene = Scene.stream()
    scene.write('edit', 'tasks', 't1', { title: 'a' })
    scene.lose()
    scene.write('edit', 'tasks', 't1', { title: 'b' })
    scene.retry('up')
    scene.answer(
      { status: 'conflict', winner: 'theirs', version: 5, server: { id: 't1', title: 'theirs', version: 5 } },
      { status: 'rejected', code: 'DEPENDS_ON_FAILED' },
    )
    assert.deepEqual(scene.outbox(), [])
    assert.equal(scene.seen('tasks', 't1')?.['title'], 'theirs')
    assert.deepEqual(
      [...scene.results.values()].map(({ isOpen }) => isOpen),
      [true, true],
    )
  },
  edits_after_a_won_conflict_are_applied() {
    const scene = Scene.stream()
    scene.write('edit', 'messages', 'm1', { content: 'a' })
    scene.lose()
    scene.write('edit', 'messages', 'm1', { content: 'b' })
    scene.retry('up')
    scene.answer(
      {
        status: 'conflict',
        winner: 'mine',
        version: 3,
        revision: 3,
        server: message('m1', { content: 'a', version: 3, revision: 3 }),
      },
      { version: 4, revision: 4 },
    )
    assert.equal(scene.stored('messages', 'm1')?.['content'], 'b')
    assert.equal(scene.stored('messages', 'm1')?.['version'], 4)
  },
  edit_after_a_lost_response_stands_on_the_unanswered_one() {
    const scene = Scene.stream()
    scene.write('edit', 'tasks', 't1', { title: 'a' })
    scene.lose()
    scene.sync('timer')
    scene.batch({ cursor: 'c2', changes: [insert('t1', task('a', 2), 'update')] })
    scene.acknowledged()
    scene.write('edit', 'tasks', 't1', { title: 'b' })
    assert.deepEqual([scene.outbox()[1]?.baseSeq, scene.outbox()[1]?.baseVersion], [1, null])
  },
  rejected_item_leaves_the_queue() {
    const scene = Scene.stream()
    const key = scene.write('edit', 'tasks', 't1', { title: '' })
    scene.lose()
    scene.write('edit', 'tasks', 't2', { title: 'rye' })
    scene.retry('up')
    scene.answer({ status: 'rejected', code: 'VALIDATION_ERROR', message: 'too short' }, { version: 2 })
    assert.deepEqual(scene.outbox(), [])
    assert.deepEqual([scene.results.get(key)?.message, scene.results.get(key)?.isOpen], ['too short', true])
    assert.equal(scene.seen('tasks', 't1')?.['title'], 'milk')
    assert.equal(scene.seen('tasks', 't2')?.['title'], 'rye')
    scene.taken()
    scene.sync()
    assert.equal(scene.request.type, 'fetch')
  },
  retry_item_and_those_behind_it_stay() {
    for (const status of ['retry', 'a status of a newer server']) {
      const scene = Scene.stream()
      scene.end()
      for (const id of ['a', 'b', 'c']) scene.write('create', 'tasks', id, { title: id })
      scene.do({ type: 'enroll', enrollment: { by: 'code', token: 'other' }, freshId: 'unused' })
      scene.enrolled('user-1')
      scene.answer({ version: 1 }, { status }, { status: 'applied', version: 1 })
      assert.deepEqual(
        scene.outbox().map(({ seq, id }) => [seq, id]),
        [
          [2, 'b'],
          [3, 'c'],
        ],
      )
      assert.equal(scene.state.up.pause, 'backoff')
      assert.equal(scene.request.type, 'fetch')
    }
  },
  stored_results_are_acknowledged() {
    const scene = Scene.stream()
    scene.write('create', 'tasks', 'a', { title: 'a' })
    scene.answer({ version: 1 })
    scene.write('create', 'tasks', 'b', { title: 'b' })
    assert.ok(scene.request.type === 'upload' && scene.request.ackedSeq === 1)
    assert.equal(scene.uploading[0]?.seq, 2)
  },
  oversized_upload_is_halved() {
    const scene = Scene.unenrolled()
    for (const id of ['a', 'b', 'c']) scene.write('create', 'tasks', id, {})
    scene.do({ type: 'enroll', enrollment: { by: 'code', token: 'other' }, freshId: 'device-1' })
    scene.enrolled('user-1')
    assert.equal(scene.uploading.length, 3)
    scene.refuse(413, 'PAYLOAD_TOO_LARGE')
    assert.equal(scene.uploading.length, 2)
    scene.refuse(413, 'PAYLOAD_TOO_LARGE')
    assert.equal(scene.uploading.length, 1)
    assert.equal(scene.outbox().length, 3)
  },
  oversized_single_item_is_rejected() {
    const scene = Scene.stream()
    const key = scene.write('edit', 'tasks', 't1', { title: 'x'.repeat(100) })
    scene.lose()
    scene.write('edit', 'tasks', 't1', { title: 'short' })
    scene.write('edit', 'tasks', 't2', { title: 'rye' })
    scene.write('edit', 'tasks', 't2', { title: 'oat' })
    scene.retry('up')
    for (let left = 2; left-- > 0;) scene.refuse(413, 'PAYLOAD_TOO_LARGE')
    assert.equal(scene.uploading.length, 1)
    scene.refuse(413, '')
    assert.equal(scene.results.get(key)?.status, 'rejected')
    assert.deepEqual(
      scene.outbox().map(({ seq, baseSeq, baseVersion }) => [seq, baseSeq, baseVersion]),
      [
        [1, null, 1],
        [2, null, 1],
        [3, 2, null],
      ],
    )
  },
  sequence_gap_renumbers_the_outbox() {
    const scene = Scene.stream()
    for (const id of ['a', 'b', 'c']) {
      scene.write('create', 'tasks', id, { title: id })
      scene.answer({ version: 1 })
    }
    scene.write('edit', 'tasks', 'c', { title: 'after' })
    assert.equal(scene.uploading[0]?.seq, 4)
    scene.refuse(409, 'SEQUENCE_GAP', 2)
    assert.equal(scene.phase, 'fresh')
    assert.deepEqual([scene.outbox()[0]?.seq, scene.state.device.ackedSeq], [2, 1])
    assert.equal(scene.uploading[0]?.seq, 2)
  },
  restored_device_gets_the_results_of_repeats_first() {
    const scene = Scene.stream()
    scene.end()
    for (const id of ['a', 'b']) scene.write('create', 'tasks', id, { title: id })
    scene.do({ type: 'enroll', enrollment: { by: 'code', token: 'other' }, freshId: 'unused' })
    scene.enrolled('user-1')
    scene.refuse(409, 'DEVICE_RESTORED', 9)
    assert.deepEqual(
      scene.uploading.map(({ seq }) => seq),
      [1],
    )
    scene.answer({ version: 1 })
    assert.deepEqual(
      scene.uploading.map(({ seq }) => seq),
      [2],
    )
    scene.refuse(409, 'DEVICE_RESTORED', 9)
    assert.deepEqual(
      scene.uploading.map(({ seq }) => seq),
      [9],
    )
  },
  restored_device_renumbers_the_outbox() {
    const scene = Scene.stream()
    scene.write('create', 'tasks', 'a', { title: 'a' })
    scene.refuse(409, 'DEVICE_RESTORED', 7)
    assert.equal(scene.phase, 'fresh')
    assert.deepEqual([scene.outbox()[0]?.seq, scene.state.device.ackedSeq], [7, 6])
  },
  renumbered_edit_keeps_the_version_of_its_base() {
    const scene = Scene.stream()
    scene.write('edit', 'tasks', 't1', { title: 'a' })
    scene.lose()
    scene.write('edit', 'tasks', 't1', { title: 'b' })
    scene.write('edit', 'tasks', 't1', { title: 'c' })
    scene.retry('up')
    scene.answer({ version: 2 }, { status: 'retry' })
    // The base stays in what is sent, so that a repeat is the same.
    assert.deepEqual(wireItem(scene.outbox()[0]!), {
      seq: 2,
      table: 'tasks',
      op: 'edit',
      id: 't1',
      row: { title: 'b' },
      base_seq: 1,
    })
    scene.sync('user')
    scene.refuse(409, 'DEVICE_RESTORED', 10)
    scene.refuse(409, 'DEVICE_RESTORED', 10)
    assert.deepEqual(
      scene.outbox().map(({ seq, baseSeq, baseVersion }) => [seq, baseSeq, baseVersion]),
      [
        [10, null, 2],
        [11, 10, null],
      ],
    )
  },
  missing_response_keeps_items_and_fetches() {
    for (const fail of ['lose', 'later'] as const) {
      const scene = Scene.stream()
      scene.write('edit', 'tasks', 't1', { title: 'a' })
      scene.sync('timer')
      scene[fail]()
      assert.equal(scene.outbox().length, 1)
      assert.equal(scene.request.type, 'fetch')
    }
  },
  killed_device_sends_unanswered_items_again() {
    const scene = Scene.stream()
    scene.write('edit', 'tasks', 't1', { title: 'a' })
    const sent = scene.uploading.map(wireItem)
    scene.crash()
    assert.deepEqual(scene.uploading.map(wireItem), sent)
  },
  ended_token_is_deleted() {
    const scene = Scene.stream()
    scene.write('edit', 'tasks', 't1', { title: 'a' })
    scene.end()
    assert.equal(scene.phase, 'unenrolled')
    assert.equal(scene.outbox().length, 1)
  },
})

state('groups', {
  join_brings_rows_of_before() {
    const scene = Scene.fresh()
    scene.batch({ reset: true, cursor: 'c1', changes: [shared('a', task('mine'), 'user:user-1')] })
    scene.acknowledged()
    scene.sync()
    scene.batch({ cursor: 'c2', hasMore: true, changes: [membership('join', '1')] })
    assert.deepEqual(scene.state.device.groups, ['list:1'])
    scene.batch({ cursor: 'c3', hasMore: true, scope: 'list:1', changes: [shared('b', task('of before'), 'list:1')] })
    assert.equal(scene.state.progress, 1)
    scene.batch({ cursor: 'c4' })
    assert.deepEqual([scene.phase, scene.state.progress, scene.ids('tasks')], ['stream', 0, ['a', 'b']])
    assert.deepEqual(scene.notices(), [{ name: 'joined', group: 'list', id: '1' }])
  },
  rows_after_the_join_follow_the_snapshot_of_the_group() {
    const scene = Scene.stream()
    scene.sync()
    scene.batch({ cursor: 'c2', hasMore: true, changes: [membership('join', '1')] })
    scene.lose()
    scene.crash()
    assert.ok(scene.request.type === 'fetch' && scene.request.cursor === 'c2')
    scene.batch({ cursor: 'c3', hasMore: true, scope: 'list:1', changes: [shared('a', task('a'), 'list:1')] })
    scene.batch({ cursor: 'c4', changes: [remove('a'), shared('b', task('b'), 'list:1')] })
    assert.deepEqual(scene.ids('tasks'), ['b', 't1', 't2'])
  },
  row_that_left_the_group_before_the_join_goes_with_the_others() {
    for (const isStill of [false, true]) {
      const scene = Scene.stream()
      scene.sync()
      scene.batch({ cursor: 'join 1', hasMore: true, changes: [membership('join', '1')] })
      scene.batch({ cursor: 'c2', changes: [shared('a', task('of both'), 'list:1', 'list:2')] })
      scene.acknowledged()
      scene.sync()
      // That it left the list 2 is in the stream of the list 1 only, which is not read after the membership has ended.
      scene.batch({ cursor: 'join 2', hasMore: true, changes: [membership('join', '2')] })
      const page = isStill ? [shared('a', task('of both'), 'list:1', 'list:2')] : []
      scene.batch({ cursor: 'c3', hasMore: true, scope: 'list:2', changes: page })
      scene.batch({ cursor: 'c4', changes: [membership('leave', '1')] })
      assert.deepEqual(scene.ids('tasks'), isStill ? ['a', 't1', 't2'] : ['t1', 't2'])
    }
  },
  result_within_a_snapshot_keeps_no_former_audiences() {
    for (const status of ['conflict', 'applied']) {
      const scene = Scene.stream()
      scene.sync()
      scene.batch({ cursor: 'join 1', hasMore: true, changes: [membership('join', '1')] })
      scene.batch({ cursor: 'c2', changes: [shared('a', task('old'), 'list:1', 'user:user-1')] })
      scene.acknowledged()
      scene.sync()
      scene.write('edit', 'tasks', 'a', { title: 'mine' })
      // The row is in the list 3 only by now, and its page would be the next.
      const joins = [membership('join', '1'), membership('join', '3')]
      scene.batch({ reset: true, hasMore: true, cursor: 'd1', changes: [...joins, insert('t1', task('milk'))] })
      const server = { id: 'a', ...task('of list 3', 2) }
      scene.answer(status === 'conflict' ? { status, winner: 'theirs', version: 2, server } : { status, version: 2 })
      scene.batch({ cursor: 'd2', hasMore: true })
      assert.ok(scene.seen('tasks', 'a'), status)
      scene.batch({ cursor: 'd3', changes: [membership('leave', '3')] })
      assert.deepEqual(scene.ids('tasks'), ['t1'], status)
    }
  },
  leave_removes_rows_seen_by_that_group_only() {
    const scene = member()
    const changes = [
      shared('a', task('of 1'), 'list:1'),
      shared('b', task('of both'), 'list:1', 'list:2'),
      shared('c', task('of 1 and the user'), 'list:1', 'user:user-1'),
      shared('d', task('of all'), 'tenant'),
    ]
    scene.batch({ cursor: 'c2', changes })
    scene.acknowledged()
    scene.sync()
    scene.taken()
    scene.batch({ cursor: 'c3', changes: [membership('leave', '1')] })
    // Rows that no group sees stay: these have no audiences.
    assert.deepEqual(scene.ids('tasks'), ['b', 'c', 'd', 't1', 't2'])
    assert.deepEqual(scene.state.device.groups, ['list:2'])
    assert.deepEqual(scene.notices(), [{ name: 'left', group: 'list', id: '1' }])
    // Changes apply in their order: a row before the leave goes with it, one behind it is of another membership.
    scene.acknowledged()
    scene.sync()
    scene.batch({
      cursor: 'c4',
      changes: [
        shared('e', task('before'), 'list:2'),
        membership('leave', '2'),
        membership('join', '2'),
        shared('f', task('behind'), 'list:2'),
      ],
    })
    assert.deepEqual(scene.ids('tasks'), ['c', 'd', 'f', 't1', 't2'])
  },
  leave_removes_rows_that_only_results_have_brought() {
    const scene = member()
    scene.batch({ cursor: 'c2' })
    scene.write('create', 'tasks', 'n1', { title: 'first', list: '1' })
    scene.write('edit', 'tasks', 'n1', { title: 'mine' })
    scene.answer({ version: 1 })
    scene.answer({ version: 2 })
    // A row that a batch has brought without audiences is of a table without groups.
    scene.write('edit', 'tasks', 't1', { title: 'oat milk' })
    scene.answer({ version: 2 })
    scene.sync()
    scene.batch({ cursor: 'c3', changes: [membership('leave', '2')] })
    assert.deepEqual(scene.ids('tasks'), ['t1', 't2'])
    scene.acknowledged()
    // It is still seen, and comes back as the user wrote it.
    for (const [version, titles] of [
      [1, undefined],
      [2, 'mine'],
    ] as const) {
      scene.sync()
      scene.batch({ cursor: `d${version}`, changes: [shared('n1', task('mine', version), 'list:1')] })
      scene.acknowledged()
      assert.equal(scene.seen('tasks', 'n1')?.['title'], titles)
    }
  },
  leave_keeps_rows_that_a_snapshot_has_brought() {
    const scene = member()
    scene.batch({ cursor: 'c2' })
    scene.write('create', 'tasks', 'n1', { title: 'mine' })
    scene.answer({ version: 1 })
    scene.sync()
    scene.batch({ cursor: 'c3', reset: true, changes: [membership('join', '1'), insert('n1', task('mine'))] })
    scene.acknowledged()
    scene.sync()
    scene.batch({ cursor: 'c4', changes: [membership('leave', '1')] })
    assert.deepEqual(scene.ids('tasks'), ['n1'])
  },
  result_of_a_repeat_after_the_leave_brings_no_row() {
    const scene = member()
    scene.batch({ cursor: 'c2' })
    scene.write('create', 'tasks', 'n1', { title: 'mine', list: '1' })
    scene.lose()
    scene.sync('timer')
    scene.batch({ cursor: 'c3', changes: [membership('leave', '1')] })
    scene.acknowledged()
    scene.retry('up')
    scene.answer({ version: 1 })
    assert.deepEqual(scene.ids('tasks'), ['t1', 't2'])
    assert.equal(scene.outbox().length, 0)
  },
  row_that_no_audience_of_the_device_sees_is_not_kept() {
    const scene = member()
    scene.batch({ cursor: 'c2', changes: [shared('a', task('of 1'), 'list:1')] })
    scene.acknowledged()
    scene.write('edit', 'tasks', 'a', { title: 'mine' })
    scene.lose()
    scene.sync('timer')
    scene.batch({ cursor: 'c3', changes: [shared('a', task('of 3', 2), 'list:3', 'user:user-2'), shared('b', task('of no list'))] })
    assert.deepEqual(scene.ids('tasks'), ['t1', 't2'])
    // As with a deletion, the first result of a repeated item does not bring it back.
    assert.equal(scene.outbox()[0]?.sent, 'overtaken')
    scene.acknowledged()
    scene.retry('up')
    scene.answer({ version: 2 })
    assert.deepEqual(scene.ids('tasks'), ['t1', 't2'])
  },
  reset_forgets_groups_until_the_snapshot_names_them() {
    const scene = member()
    scene.batch({ cursor: 'c2', changes: [shared('a', task('of 1'), 'list:1'), shared('b', task('of 2'), 'list:2')] })
    scene.acknowledged()
    scene.sync()
    scene.taken()
    scene.batch({
      reset: true,
      hasMore: true,
      cursor: 'd1',
      changes: [membership('join', '2'), membership('join', '3'), shared('b', task('of 2'), 'list:2')],
    })
    assert.deepEqual(scene.state.device.groups, ['list:2', 'list:3'])
    // The user sees no incomplete list meanwhile.
    assert.deepEqual(scene.ids('tasks'), ['a', 'b', 't1', 't2'])
    // This page was read before the membership of it ended.
    scene.batch({ cursor: 'd2', changes: [shared('c', task('of 1'), 'list:1')] })
    assert.deepEqual(scene.ids('tasks'), ['b'])
    assert.deepEqual(scene.notices(), [
      { name: 'reset' },
      { name: 'joined', group: 'list', id: '3' },
      { name: 'left', group: 'list', id: '1' },
    ])
  },
})

state('events', {
  event_triggers_one_sync() {
    const scene = live()
    scene.event('message', 'e1')
    const request = scene.request
    scene.event('message', 'e2')
    scene.event('message', 'e3')
    assert.equal(scene.request, request)
    scene.batch({ cursor: 'c2' })
    // What came after the request was sent needs one more, and only one.
    assert.equal(scene.state.device.lastEventId, 'e1')
    scene.batch({ cursor: 'c3' })
    assert.equal(scene.state.device.lastEventId, 'e3')
    assert.equal(scene.state.busy, null)
  },
  opened_stream_triggers_one_sync() {
    const scene = live()
    scene.do({ type: 'liveFailed', failure: { kind: 'lost', message: 'ended' } })
    scene.retry('live')
    scene.taken()
    scene.do({ type: 'liveOpened' })
    scene.batch({ cursor: 'c2' })
    assert.deepEqual(
      scene.taken().map(({ type }) => type),
      ['fetch'],
    )
  },
  broken_stream_resumes_by_last_event_id() {
    const scene = live()
    scene.event('message', 'e1')
    scene.batch({ cursor: 'c2' })
    scene.do({ type: 'liveFailed', failure: { kind: 'lost', message: 'no heartbeat' } })
    scene.taken()
    scene.retry('live')
    assert.deepEqual(scene.taken(), [{ type: 'openLive', lastEventId: 'e1' }])
    scene.do({ type: 'liveOpened' })
    assert.equal(scene.request.type, 'fetch')
  },
  bye_reconnects_after_given_delay() {
    const scene = live()
    scene.taken()
    scene.event('bye', null, { reconnect_ms: 1234 })
    assert.deepEqual(scene.taken(), [{ type: 'closeLive' }, { type: 'wait', lane: 'live', failures: 0, least: 1234 }])
    // A hint does not shorten a delay that the server names.
    scene.sync('hint')
    scene.batch({ cursor: 'c2' })
    assert.equal(scene.state.live.status, 'waiting')
    scene.retry('live')
    assert.equal(scene.state.live.status, 'opening')
  },
  reset_event_triggers_sync() {
    const scene = live()
    scene.event('reset')
    scene.batch({ reset: true, hasMore: true, cursor: 'd1' })
    assert.equal(scene.phase, 'snapshot')
  },
  revoked_event_deletes_token() {
    const scene = live()
    scene.taken()
    scene.event('revoked')
    assert.equal(scene.phase, 'unenrolled')
    assert.ok(scene.taken().some(({ type }) => type === 'closeLive'))
    assert.deepEqual(scene.ids('tasks'), ['t1', 't2'])
  },
  refused_last_event_id_is_deleted() {
    const scene = live()
    scene.event('message', 'e1')
    scene.batch({ cursor: 'c2' })
    scene.do({ type: 'liveFailed', failure: { kind: 'lost', message: 'ended' } })
    scene.retry('live')
    scene.taken()
    const failure = { kind: 'refused', status: 400, code: 'INVALID_CURSOR', message: '', expected: null } as const
    scene.do({ type: 'liveFailed', failure })
    assert.equal(scene.state.device.lastEventId, null)
    assert.deepEqual(scene.taken(), [{ type: 'openLive', lastEventId: null }])
    // Without an id to delete, the refusal is a failure like any other.
    scene.do({ type: 'liveFailed', failure })
    assert.equal(scene.state.live.status, 'waiting')
  },
})

test('each line of the protocol has a test', () => {
  // The tests run from the package's folder.
  const text = readFileSync('../../docs/sync-protocol.md', 'utf8')
  const [, tables = ''] = text.split('## States and events')
  const lines = [...tables.split('## Rules')[0]!.matchAll(/\| `(\w+::\w+)` \|/g)].map(([, name]) => name)
  assert.ok(lines.length > 60)
  assert.deepEqual([...names].sort(), lines.sort())
})

/** A member of the lists 1 and 2, which have no tasks; a request for the next batch is in flight. */
function member(): Scene {
  const scene = Scene.stream()
  scene.sync()
  for (const id of ['1', '2']) {
    scene.batch({ cursor: `join ${id}`, hasMore: true, changes: [membership('join', id)] })
    scene.batch({ cursor: `scope ${id}`, hasMore: true, scope: `list:${id}` })
  }
  return scene
}

/** A device with an open stream, synced. */
function live(): Scene {
  const scene = Scene.stream()
  scene.do({ type: 'liveWanted', wanted: true })
  scene.do({ type: 'liveOpened' })
  scene.batch({ cursor: 'c1' })
  return scene
}

function retryAfterDelays(scene: Scene, phase: string): void {
  scene.taken()
  const cursor = scene.state.device.cursor
  scene.later(3000)
  assert.deepEqual(scene.taken(), [{ type: 'wait', lane: 'down', failures: 1, least: 3000 }])
  assert.equal(scene.phase, phase)
  // Neither a timer nor a hint of the network shortens the delay.
  scene.sync('timer')
  scene.sync('hint')
  assert.deepEqual(scene.taken(), [])
  scene.retry('down')
  assert.ok(scene.request.type === 'fetch' && scene.request.cursor === cursor)
}
