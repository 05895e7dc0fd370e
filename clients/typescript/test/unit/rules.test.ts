import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { Change } from '../../src/machine/event.js'
import { insert, membership, message, remove, Scene, shared, task } from './scene.js'

/** The user edits a row twice; both are applied, and the stream is behind. */
function twiceEdited(): Scene {
  const scene = Scene.stream()
  for (const title of ['first', 'second']) {
    const place = scene.outbox().length
    assert.equal(place, 0)
    scene.write('edit', 'tasks', 't1', { title })
    scene.answer({ version: title === 'first' ? 2 : 3 })
  }
  return scene
}

describe('row stored from the result of an own upload', () => {
  test('stays when a batch brings an older version', () => {
    const scene = twiceEdited()
    scene.sync()
    scene.batch({ cursor: 'c2', changes: [insert('t1', task('first', 2), 'update')] })
    assert.equal(scene.seen('tasks', 't1')?.['title'], 'second')
    scene.write('edit', 'tasks', 't1', { title: 'third' })
    assert.equal(scene.outbox()[0]?.baseVersion, 3)
  })

  test('is replaced by a version that is at least as high', () => {
    for (const version of [3, 4]) {
      const scene = twiceEdited()
      scene.sync()
      scene.batch({
        cursor: 'c2',
        changes: [insert('t1', { ...task('of the server', version), done: true }, 'update')],
      })
      assert.deepEqual(scene.stored('tasks', 't1'), { id: 't1', title: 'of the server', version, done: true })
      // From then on the last one received is the newest: the server may have been restored.
      scene.acknowledged()
      scene.sync()
      scene.batch({ cursor: 'c3', changes: [insert('t1', task('older', 1), 'update')] })
      assert.equal(scene.seen('tasks', 't1')?.['title'], 'older')
    }
  })

  test('is removed by a batch that deletes it', () => {
    const scene = twiceEdited()
    scene.sync()
    scene.batch({ cursor: 'c2', changes: [remove('t1')] })
    assert.equal(scene.stored('tasks', 't1'), null)
  })

  test('is replaced by a snapshot, whatever its version', () => {
    const scene = twiceEdited()
    scene.sync()
    scene.batch({ reset: true, cursor: 'd1', changes: [insert('t1', task('restored', 1))] })
    assert.equal(scene.seen('tasks', 't1')?.['title'], 'restored')
  })

  test('that it deleted does not come back with an entry from before', () => {
    for (const version of [null, 3]) {
      const scene = Scene.stream()
      scene.write('delete', 'tasks', 't1')
      scene.answer({ version })
      scene.sync()
      scene.batch({ cursor: 'c2', changes: [insert('t1', task('before', 2), 'update')] })
      scene.acknowledged()
      assert.equal(scene.seen('tasks', 't1'), null)
      scene.sync()
      scene.batch({ cursor: 'c3', changes: [remove('t1')] })
      scene.acknowledged()
      scene.sync()
      scene.batch({ cursor: 'c4', changes: [insert('t1', task('created again', 1))] })
      assert.equal(scene.seen('tasks', 't1')?.['title'], 'created again')
    }
  })

  test('that it deleted comes back with a later version', () => {
    const scene = Scene.stream()
    scene.write('delete', 'tasks', 't1')
    scene.answer({ version: 2 })
    scene.sync()
    scene.batch({ cursor: 'c2', changes: [insert('t1', task('restored', 3), 'update')] })
    assert.equal(scene.seen('tasks', 't1')?.['title'], 'restored')
  })

  test('during a snapshot stays until the stream has repeated it', () => {
    const scene = Scene.snapshot()
    scene.write('create', 'tasks', 't9', { title: 'first' })
    scene.write('edit', 'tasks', 't9', { title: 'second' })
    scene.batch({ hasMore: true, cursor: 'c2' })
    scene.answer({ version: 1 }, { version: 2 })
    scene.batch({ hasMore: true, cursor: 'c3', changes: [insert('t9', task('second', 2))] })
    scene.batch({ cursor: 'c4' })
    // The stream begins where the snapshot began.
    for (const [version, title] of [
      [1, 'first'],
      [2, 'second'],
    ] as const) {
      scene.sync()
      scene.batch({ cursor: `c${4 + version}`, changes: [insert('t9', task(title, version), 'update')] })
      scene.acknowledged()
      assert.equal(scene.seen('tasks', 't9')?.['title'], 'second')
    }
  })

  test('does not return when batches have deleted it before its first result', () => {
    const scene = Scene.stream()
    scene.write('create', 'tasks', 't9', { title: 'mine' })
    scene.lose()
    scene.sync('timer')
    scene.batch({ cursor: 'c2', changes: [insert('t9', task('mine', 1))] })
    scene.acknowledged()
    scene.sync('timer')
    scene.batch({ cursor: 'c3', changes: [remove('t9')] })
    scene.acknowledged()
    scene.retry('up')
    scene.answer({ version: 1 })
    assert.deepEqual(scene.outbox(), [])
    assert.equal(scene.stored('tasks', 't9'), null)
  })

  test('of an item that was sent before a reset is gone at its end if the server no longer has it', () => {
    const scene = Scene.stream()
    scene.write('edit', 'tasks', 't1', { title: 'mine' })
    scene.lose()
    scene.sync('timer')
    scene.retry('up')
    scene.batch({ reset: true, hasMore: true, cursor: 's1', changes: [insert('t2', { title: 'bread', version: 1 })] })
    // The server deleted the row after the first attempt, and repeats its first result.
    scene.answer({ version: 2 })
    assert.equal(scene.stored('tasks', 't1')?.['title'], 'mine')
    scene.batch({ cursor: 's2' })
    assert.equal(scene.stored('tasks', 't1'), null)
  })

  test('is not replaced by its first result if batches bring rows without versions', () => {
    const scene = Scene.stream()
    scene.sync()
    scene.batch({ cursor: 'c2', changes: [insert('u1', { title: 'base' })] })
    scene.acknowledged()
    scene.write('edit', 'tasks', 'u1', { title: 'mine' })
    scene.lose()
    scene.sync('timer')
    scene.batch({ cursor: 'c3', changes: [insert('u1', { title: 'later' }, 'update')] })
    scene.acknowledged()
    scene.retry('up')
    scene.answer({})
    assert.equal(scene.stored('tasks', 'u1')?.['title'], 'later')
  })

  test("that is the server's row of a conflict stays in the same way", () => {
    const scene = Scene.stream()
    scene.write('edit', 'tasks', 't1', { title: 'mine' })
    scene.answer({ status: 'conflict', winner: 'theirs', version: 5, server: { id: 't1', ...task('theirs', 5) } })
    scene.sync()
    scene.batch({ cursor: 'c2', changes: [insert('t1', task('between', 4), 'update')] })
    assert.equal(scene.seen('tasks', 't1')?.['title'], 'theirs')
  })

  test("that is the current row of a repeated conflict stays by that row's number, not by the result's", () => {
    const scene = Scene.stream()
    scene.write('edit', 'tasks', 't1', { title: 'mine' })
    scene.lose()
    scene.retry('up')
    // The first result was of version 3; the row has changed since.
    scene.answer({ status: 'conflict', winner: 'theirs', version: 3, server: { id: 't1', ...task('current', 5) } })
    scene.sync()
    scene.batch({ cursor: 'c2', changes: [insert('t1', task('between', 4), 'update')] })
    assert.equal(scene.seen('tasks', 't1')?.['title'], 'current')
  })

  test('that deleted a message does not come back with a lower revision', () => {
    const scene = Scene.stream()
    scene.write('delete', 'messages', 'm1')
    scene.answer({ version: 2, revision: 4 })
    scene.sync()
    // The version alone would not tell them apart.
    scene.batch({ cursor: 'c2', messages: [message('m1', { version: 2, revision: 3 })] })
    assert.equal(scene.stored('messages', 'm1'), null)
  })

  test('is compared by its version where an own table has a column named revision', () => {
    const scene = Scene.stream()
    scene.write('edit', 'tasks', 't1', { title: 'mine' })
    scene.answer({ version: 2 })
    scene.sync()
    const late = insert('t1', { ...task('late', 1), revision: 9 }, 'update')
    scene.batch({ cursor: 'c2', changes: [late] })
    assert.equal(scene.seen('tasks', 't1')?.['title'], 'mine')
  })

  test('keeps the number of the page of a snapshot that brings it', () => {
    const scene = twiceEdited()
    scene.sync()
    // The stream begins where the snapshot began, which was before the page was read.
    scene.batch({ reset: true, cursor: 'd1', changes: [insert('t1', task('second', 3))] })
    scene.acknowledged()
    scene.sync()
    scene.batch({ cursor: 'd2', changes: [insert('t1', task('first', 2), 'update')] })
    assert.equal(scene.seen('tasks', 't1')?.['title'], 'second')
  })
})

describe('groups', () => {
  function member(...changes: Change[]): Scene {
    const scene = Scene.stream()
    scene.sync()
    for (const id of ['1', '2']) scene.batch({ cursor: `join ${id}`, hasMore: true, changes: [membership('join', id)] })
    scene.batch({ cursor: 'c2', changes })
    if (scene.state.busy) scene.acknowledged()
    return scene
  }

  function next(scene: Scene, ...changes: Change[]): void {
    if (!scene.state.busy) scene.sync('timer')
    scene.batch({ cursor: `after ${scene.state.device.cursor}`, changes })
    if (scene.state.busy === 'ack') scene.acknowledged()
  }

  test('row of an unanswered upload does not stay when the membership ended first', () => {
    const scene = member()
    scene.write('create', 'tasks', 'n1', { title: 'mine' })
    scene.lose()
    // Of a group that was left the stream has nothing, not even the own row.
    next(scene, membership('leave', '1'))
    scene.retry('up')
    scene.answer({ version: 1 })
    assert.deepEqual([scene.outbox(), scene.stored('tasks', 'n1')], [[], null])
  })

  test('batch behind a result does not change its row, but says who sees it', () => {
    const scene = member(shared('a', task('base'), 'list:1'))
    scene.write('edit', 'tasks', 'a', { title: 'mine' })
    scene.answer({ version: 3 })
    next(scene, shared('a', task('moved', 2), 'list:2'))
    next(scene, membership('leave', '1'))
    assert.equal(scene.seen('tasks', 'a')?.['title'], 'mine')
    next(scene, membership('leave', '2'))
    assert.equal(scene.seen('tasks', 'a'), null)
  })

  test('mark of a deleted row goes with its group', () => {
    const scene = member(shared('a', task('base'), 'list:1'))
    scene.write('delete', 'tasks', 'a')
    scene.answer({})
    next(scene, membership('leave', '1'))
    next(scene, membership('join', '1'))
    next(scene, shared('a', task('restored'), 'list:1'))
    assert.equal(scene.seen('tasks', 'a')?.['title'], 'restored')
  })

  test("page of a group's snapshot keeps the mark of a result until the stream has repeated it", () => {
    const scene = member(shared('a', task('base'), 'list:1'))
    for (const title of ['first', 'second']) {
      scene.write('edit', 'tasks', 'a', { title })
      scene.answer({ version: title === 'first' ? 2 : 3 })
    }
    next(scene, membership('join', '3'))
    scene.sync()
    scene.batch({ cursor: 'scope', hasMore: true, scope: 'list:3', changes: [shared('a', task('second', 3), 'list:3')] })
    next(scene, shared('a', task('first', 2), 'list:3'))
    assert.equal(scene.seen('tasks', 'a')?.['title'], 'second')
  })

  test('waiting change of a row that was left is refused by the server, not lost', () => {
    const scene = member(shared('a', task('base'), 'list:1'))
    scene.sync()
    scene.write('edit', 'tasks', 'a', { title: 'mine' })
    next(scene, membership('leave', '1'))
    assert.equal(scene.seen('tasks', 'a'), null)
    scene.answer({ status: 'rejected', code: 'NOT_FOUND' })
    assert.deepEqual([...scene.results.values()].at(-1)?.isOpen, true)
  })

  test('another user of the storage has none of the groups', () => {
    const scene = member()
    scene.end()
    scene.do({ type: 'enroll', enrollment: { by: 'code', token: 'other' }, freshId: 'unused' })
    scene.enrolled('user-2')
    assert.deepEqual(scene.state.device.groups, [])
  })
})

describe('batches', () => {
  test('message with a lower revision does not replace a newer one, except an old one', () => {
    const scene = Scene.stream()
    scene.sync()
    scene.batch({ cursor: 'c2', messages: [message('m1', { content: 'new', revision: 5 })] })
    scene.acknowledged()
    scene.sync()
    scene.batch({ cursor: 'c3', messages: [message('m1', { content: 'late', revision: 4 })] })
    assert.equal(scene.stored('messages', 'm1')?.['content'], 'new')
    scene.acknowledged()
    scene.sync()
    scene.batch({ reset: true, cursor: 'd1', messages: [message('m1', { content: 'restored', revision: 1 })] })
    assert.equal(scene.stored('messages', 'm1')?.['content'], 'restored')
  })

  test('batch that was requested with another cursor is discarded', () => {
    const scene = Scene.stream()
    scene.sync()
    const { ticket } = scene.request
    const batch = { messages: [message('late')], users: [], changes: [], cursor: 'x', hasMore: false, reset: false }
    scene.do({ type: 'batch', ticket, requested: 'another', at: 1, batch, stored: new Map(), old: [], regrouped: [], conflicts: new Map() })
    assert.equal(scene.stored('messages', 'late'), null)
    assert.equal(scene.state.device.cursor, 'c1')
  })

  test('cursor that does not advance while there is more is repeated after a delay', () => {
    const scene = Scene.stream()
    scene.sync()
    scene.batch({ cursor: 'c1', hasMore: true })
    assert.equal(scene.state.busy, null)
    assert.equal(scene.state.down.pause, 'backoff')
  })

  test('answer to an abandoned request is ignored', () => {
    const scene = Scene.stream()
    scene.sync()
    const { ticket } = scene.request
    scene.do({ type: 'leads', leads: false, live: false, hasCredentials: false })
    const before = scene.state
    scene.do({ type: 'failed', ticket, failure: { kind: 'ended', code: 'X', message: '' }, freshId: '' })
    assert.equal(scene.state, before)
  })

  test('outbox message of Postgres is an event and no row', () => {
    const scene = Scene.stream()
    scene.sync()
    const change = { table: 'posduif:mail', op: 'message', id: 'x', row: { to: 'bob' } }
    scene.batch({ cursor: 'c2', changes: [change] })
    assert.deepEqual(scene.notices(), [{ name: 'message', event: 'mail', id: 'x', data: { to: 'bob' } }])
    assert.deepEqual(scene.ids('posduif:mail'), [])
  })
})

describe('outbox', () => {
  test('change that was never sent can be withdrawn, and those behind it keep their bases', () => {
    const scene = Scene.unenrolled()
    scene.write('create', 'tasks', 'a', { title: 'a' })
    const key = scene.write('edit', 'tasks', 'a', { title: 'b' })
    scene.write('edit', 'tasks', 'a', { title: 'c' })
    scene.do({ type: 'discard', key, result: null })
    assert.deepEqual(
      scene.outbox().map(({ seq, baseSeq }) => [seq, baseSeq]),
      [
        [1, null],
        [2, 1],
      ],
    )
  })

  test('change that was sent cannot be withdrawn', () => {
    const scene = Scene.stream()
    const key = scene.write('edit', 'tasks', 't1', { title: 'b' })
    scene.do({ type: 'discard', key, result: null })
    assert.equal(scene.outbox().length, 1)
  })

  test('results of other items are no results', () => {
    const scene = Scene.stream()
    scene.write('edit', 'tasks', 't1', { title: 'b' })
    scene.answer({ seq: 7, version: 2 })
    assert.equal(scene.outbox().length, 1)
    assert.equal(scene.state.up.pause, 'backoff')
  })

  test('change of a row that is not there is refused', () => {
    const scene = Scene.stream()
    const key = scene.write('edit', 'tasks', 'missing', { title: 'b' })
    assert.deepEqual(scene.outbox(), [])
    const [notice] = scene.notices()
    assert.ok(notice?.name === 'writeRefused' && notice.key === key && notice.code === 'LOCAL_NOT_FOUND')
  })

  test('unsent changes of a former user return with that user', () => {
    const scene = Scene.stream()
    scene.sync()
    scene.write('edit', 'tasks', 't1', { title: 'b' })
    scene.end()
    for (const user of ['user-2', 'user-1']) {
      scene.do({ type: 'enroll', enrollment: { by: 'code', token: user }, freshId: 'unused' })
      scene.enrolled(user)
      assert.equal(scene.outbox().length, user === 'user-1' ? 1 : 0)
    }
    assert.deepEqual(scene.state.device.parked, [])
  })

  /** A stream that has just ended. */
  const streamless = () => {
    const scene = Scene.stream()
    scene.do({ type: 'liveWanted', wanted: true })
    scene.do({ type: 'liveOpened' })
    scene.batch({ cursor: 'c2' })
    scene.do({ type: 'liveFailed', failure: { kind: 'lost', message: 'ended' } })
    return scene
  }

  test('result of an item of before a snapshot is shown at once, in whichever page its row came', () => {
    for (const place of [0, 1, 2]) {
      const scene = Scene.stream()
      scene.write('edit', 'tasks', 't1', { title: 'mine' })
      scene.lose()
      scene.sync('timer')
      for (const page of [0, 1, 2]) {
        const changes = page === place ? [insert('t1', task('milk'))] : []
        scene.batch({ cursor: `d${page}`, reset: page === 0, hasMore: page < 2, changes })
      }
      if (place === 2) scene.acknowledged()
      scene.retry('up')
      scene.answer({ version: 2 })
      assert.deepEqual(scene.stored('tasks', 't1'), { id: 't1', ...task('mine', 2) }, `page ${place}`)
      scene.write('edit', 'tasks', 't1', { title: 'next' })
      assert.equal(scene.outbox()[0]?.baseVersion, 2)
    }
  })

  test('decided conflict is closed on the server once, whatever is lost', () => {
    const scene = Scene.stream()
    const key = scene.write('edit', 'tasks', 't1', { title: 'mine' })
    const server = { id: 't1', ...task('theirs', 2) }
    scene.answer({ status: 'conflict', winner: 'theirs', version: 2, conflictId: 'c-1', server })
    scene.do({ type: 'discard', key, result: scene.results.get(key)! })
    assert.deepEqual([scene.results.size, scene.state.device.decided], [0, ['c-1']])
    scene.lose()
    scene.crash()
    scene.write('create', 'tasks', 't9', task('before it'))
    const sent: string[] = []
    while (scene.state.busy) {
      const { type, ticket } = scene.request
      sent.push(type)
      if (type === 'upload') scene.answer({ version: 1 })
      else if (type === 'resolve') scene.do({ type: 'resolved', ticket })
      else scene.batch({ cursor: 'c2' })
    }
    assert.deepEqual(sent, ['resolve', 'upload', 'fetch'])
    assert.deepEqual(scene.state.device.decided, [])
  })

  test('conflict that the server has closed in another way holds nothing back', () => {
    const scene = Scene.stream()
    const key = scene.write('edit', 'tasks', 't1', { title: 'mine' })
    scene.answer({ status: 'conflict', winner: 'theirs', version: 2, conflictId: 'c-1' })
    scene.do({ type: 'discard', key, result: scene.results.get(key)! })
    scene.refuse(409, 'CONFLICT')
    assert.deepEqual([scene.state.device.decided, scene.state.up.error], [[], null])
  })

  test('conflict that was decided on another device is no longer open here', () => {
    for (const isReset of [false, true]) {
      const scene = Scene.stream()
      scene.sync()
      const row = { id: 'c-1', table_name: 'tasks', row_id: 't1' }
      scene.batch({ cursor: 'c2', changes: [{ table: 'message_conflicts', op: 'insert', id: 'c-1', row }] })
      scene.acknowledged()
      scene.write('edit', 'tasks', 't1', { title: 'mine' })
      scene.write('edit', 'tasks', 't2', { title: 'other' })
      for (const conflictId of ['c-1', 'c-2'])
        scene.answer({ status: 'conflict', winner: 'theirs', version: 2, conflictId })
      scene.sync()
      const change = { table: 'message_conflicts', op: 'delete', id: 'c-1', row: null }
      const still = { ...change, op: 'insert', id: 'c-2', row: { id: 'c-2' } }
      scene.batch(isReset ? { cursor: 'd1', reset: true, changes: [still] } : { cursor: 'c3', changes: [change] })
      assert.deepEqual([...scene.results.values()].map(({ conflictId }) => conflictId), ['c-2'])
      assert.deepEqual(scene.state.device.decided, [])
    }
  })

  test('conflict that was decided elsewhere before its answer arrived is not open here', () => {
    for (const end of ['stream', 'reset', 'crash', 'one page'] as const) {
      const scene = Scene.stream()
      const key = scene.write('edit', 'tasks', 't1', { title: 'mine' })
      scene.lose()
      scene.sync('timer')
      const row = { id: 'c-1', table_name: 'tasks', row_id: 't1' }
      const begin = { table: 'message_conflicts', op: 'insert', id: 'c-1', row }
      const deletion = { table: 'message_conflicts', op: 'delete', id: 'c-1', row: null }
      if (end === 'one page') scene.batch({ cursor: 'c2', changes: [begin, deletion] })
      else {
        scene.batch({ cursor: 'c2', hasMore: true, changes: [begin] })
        const rest = insert('t2', { title: 'bread', version: 1 })
        scene.batch(end === 'reset' ? { cursor: 'd1', reset: true, changes: [rest] } : { cursor: 'c3', changes: [deletion] })
      }
      scene.write('edit', 'tasks', 't2', { title: 'other' })
      if (end === 'crash') scene.crash()
      else {
        scene.acknowledged()
        scene.retry('up')
      }
      const conflict = { status: 'conflict', winner: 'theirs', version: 2 } as const
      scene.answer({ ...conflict, conflictId: 'c-1' }, { ...conflict, conflictId: 'c-2' })
      assert.equal(scene.results.get(key)?.isOpen, false, end)
      const open = [...scene.results.values()].filter(({ isOpen }) => isOpen)
      assert.deepEqual(open.map(({ conflictId }) => conflictId), ['c-2'], end)
      assert.deepEqual(scene.state.device.closed, [], end)
    }
  })

  test('conflict whose row never came is not open after a snapshot that does not have it', () => {
    const lost = { status: 'conflict', winner: 'theirs', version: 2 } as const
    const row = (id: string) => ({ table: 'message_conflicts', op: 'insert', id, row: { id } })
    const scene = Scene.stream()
    for (const conflictId of ['c-1', 'c-2']) {
      scene.write('edit', 'tasks', 't1', { title: 'mine' })
      scene.answer({ ...lost, conflictId })
    }
    scene.sync()
    scene.batch({ cursor: 'd1', reset: true, hasMore: true, changes: [row('c-2')] })
    // It was not there when the first page was read.
    scene.write('edit', 'tasks', 't1', { title: 'mine' })
    if (scene.request.type === 'fetch') scene.batch({ cursor: 'd2', hasMore: true })
    scene.answer({ ...lost, conflictId: 'c-3' })
    scene.batch({ cursor: 'd3' })
    const open = [...scene.results.values()].filter(({ isOpen }) => isOpen).map(({ conflictId }) => conflictId)
    assert.deepEqual(open, ['c-2', 'c-3'])
  })

  test('repeated change from before a reset is open only if a batch has brought its conflict', () => {
    const row = { id: 'c-1', table_name: 'tasks', row_id: 't1' }
    const begin = { table: 'message_conflicts', op: 'insert', id: 'c-1', row }
    const lost = { status: 'conflict', winner: 'theirs', version: 2, conflictId: 'c-1' } as const
    for (const comes of ['in the snapshot', 'in a later page', 'in the stream', 'and goes', 'never'] as const) {
      const scene = Scene.stream()
      const key = scene.write('edit', 'tasks', 't1', { title: 'mine' })
      const isOpen = () => [...scene.results.values()].flatMap((result) => (result.isOpen ? [result.item.key] : []))
      scene.lose()
      scene.sync('timer')
      const others = [insert('t1', { title: 'theirs', version: 2 })]
      const isEarly = comes === 'in the snapshot'
      const isPaged = comes === 'in a later page'
      scene.batch({ cursor: 'd1', reset: true, hasMore: isPaged, changes: [...others, ...(isEarly ? [begin] : [])] })
      scene.retry('up')
      if (isPaged) scene.lose()
      else scene.acknowledged()
      scene.answer(lost)
      assert.deepEqual(isOpen(), isEarly ? [key] : [], comes)
      // Until then it may be open: neither a crash nor the limit of what is kept takes it.
      scene.crash()
      const next = (cursor: string, ...changes: Change[]) => {
        scene.sync()
        if (scene.request.type !== 'fetch') scene.acknowledged()
        scene.batch({ cursor, changes })
      }
      if (isPaged || comes === 'in the stream') next('d2', begin)
      if (comes === 'and goes') next('d2', begin, { ...begin, op: 'delete', row: null })
      assert.deepEqual(isOpen(), comes === 'and goes' || comes === 'never' ? [] : [key], comes)
      if (comes !== 'never') continue
      assert.equal(scene.results.get(key)?.isOpen, null)
      scene.batch({ cursor: 'e1', reset: true })
      assert.equal(scene.results.has(key), false)
    }
  })

  test('notes of conflicts that were decided elsewhere are bounded, and taken with missing answers only', () => {
    const scene = Scene.stream()
    const deletions = (from: number, count: number) =>
      Array.from({ length: count }, (_, n) => ({ table: 'message_conflicts', op: 'delete', id: `c-${from + n}`, row: null }))
    scene.sync()
    scene.batch({ cursor: 'c2', changes: deletions(0, 5) })
    scene.acknowledged()
    assert.deepEqual(scene.state.device.closed, [])
    scene.write('edit', 'tasks', 't1', { title: 'mine' })
    scene.lose()
    scene.sync('timer')
    for (let page = 1; page <= 3; page += 1)
      scene.batch({ cursor: `d${page}`, hasMore: page < 3, changes: deletions(page * 500, 500) })
    assert.deepEqual([scene.state.device.closed.length, scene.state.device.closed.at(-1)], [1000, 'c-1999'])
  })

  test('conflict that the change has won, and a refusal, leave nothing to close', () => {
    const scene = Scene.stream()
    const won = scene.write('edit', 'messages', 'm1', { content: 'mine' })
    scene.answer({ status: 'conflict', winner: 'mine', version: 3, conflictId: 'c-1' })
    const refused = scene.write('create', 'tasks', 't9', task(''))
    scene.answer({ status: 'rejected', code: 'VALIDATION_ERROR' })
    for (const key of [won, refused]) scene.do({ type: 'discard', key, result: scene.results.get(key)! })
    assert.deepEqual([scene.results.size, scene.state.device.decided], [0, []])
  })

  test('revoked device asks for credentials when the user wants it, and one with an unknown token at once', () => {
    for (const code of ['DEVICE_REVOKED', 'UNAUTHORIZED']) {
      const scene = Scene.stream()
      scene.do({ type: 'leads', leads: true, live: false, hasCredentials: true })
      scene.fail({ kind: 'ended', code, message: code })
      const isAsked = code === 'UNAUTHORIZED'
      assert.equal(scene.state.busy, isAsked ? 'credentials' : null, code)
      assert.equal(scene.notices().some(({ name }) => name === 'signedOut'), !isAsked, code)
      const { device, outbox } = scene.state
      scene.state = { ...scene.state, busy: null }
      scene.do({ type: 'loaded', device, outbox })
      scene.do({ type: 'leads', leads: true, live: false, hasCredentials: true })
      scene.sync('hint')
      assert.equal(scene.state.busy, isAsked ? 'credentials' : null, `${code} after a restart`)
      scene.sync('user')
      assert.equal(scene.state.busy, 'credentials', code)
    }
  })

  test('what was lost in an outage does not wait when the server answers again', () => {
    const scene = streamless()
    scene.sync('timer')
    scene.lose()
    scene.write('edit', 'tasks', 't1', { title: 'b' })
    scene.lose()
    assert.deepEqual([scene.state.up.pause, scene.state.down.pause], ['backoff', 'backoff'])
    assert.equal(scene.state.live.status, 'waiting')
    scene.retry('down')
    scene.batch({ cursor: 'c3' })
    assert.equal(scene.request.type, 'upload')
    scene.answer({ seq: 1, status: 'applied', version: 2 })
    assert.equal(scene.state.live.status, 'opening')
  })

  test('stream that alone is lost waits, although batches arrive', () => {
    const scene = streamless()
    scene.sync('timer')
    scene.batch({ cursor: 'c3' })
    assert.equal(scene.state.live.status, 'waiting')
  })

  test('enrollment that is refused keeps the token that is there', () => {
    const scene = Scene.stream()
    scene.do({ type: 'enroll', enrollment: { by: 'code', token: 'mistyped' }, freshId: 'unused' })
    scene.refuse(404, 'NOT_FOUND')
    assert.equal(scene.phase, 'stream')
  })
})
