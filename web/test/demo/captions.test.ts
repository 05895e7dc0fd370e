import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { Upload } from '../../demo/model/faults'
import type { Journey } from '../../demo/model/journey'
import { confirm, ms, type Facts } from '../../demo/model/story'

const QUIET: Facts = {
  journeys: [],
  joe: { isOffline: false, isLive: true, access: 'ready', waiting: 0, conflicts: 0, endedAt: null },
  bob: { isLive: true, waiting: 0 },
  hadConflict: false,
  resolution: null,
  uploads: [],
  repeated: null,
  killedAt: null,
  engine: { state: 'up', at: 0, downMs: null },
  liveAgainMs: null,
  check: null,
  revokedAt: null,
}

const journey = (panes: Journey['panes'], op = 'insert'): Journey => ({
  id: '1-1',
  table: 'tasks',
  op,
  rowId: 'a',
  committedAt: 1,
  publishedMs: 2,
  durableMs: 3,
  columns: [],
  panes,
})

const joe = (part: Partial<Facts['joe']>): Facts => ({ ...QUIET, joe: { ...QUIET.joe, ...part } })

test('quiet_page_confirms_no_step', () => {
  assert.deepEqual(confirm(QUIET), {})
})

describe('sql', () => {
  test('insert_on_both_screens_is_confirmed_with_its_times', () => {
    const found = confirm({ ...QUIET, journeys: [journey({ joe: { screen: 12.4 }, bob: { screen: 9.87 } })] })
    assert.equal(found.sql, 'After the commit: in Redis 2.0 ms, on Joe’s screen 12 ms, on Bob’s 9.9 ms.')
  })

  test('own_changes_updates_and_one_screen_are_not_enough', () => {
    const cases = [
      journey({ joe: { isOwn: true }, bob: { screen: 9 } }),
      journey({ joe: { screen: 9 }, bob: { screen: 9 } }, 'update'),
      journey({ joe: { screen: 9 }, bob: {} }),
    ]
    for (const each of cases) assert.equal(confirm({ ...QUIET, journeys: [each] }).sql, undefined)
  })
})

describe('offline', () => {
  test('three_waiting_changes_offline_are_confirmed', () => {
    assert.equal(confirm(joe({ isOffline: true, waiting: 3 })).offline, '3 changes wait in the outbox of the phone.')
  })

  test('fewer_or_online_are_not', () => {
    assert.equal(confirm(joe({ isOffline: true, waiting: 2 })).offline, undefined)
    assert.equal(confirm(joe({ waiting: 3 })).offline, undefined)
  })
})

describe('conflict', () => {
  test('decided_conflict_is_confirmed_when_nothing_waits', () => {
    const decided: Facts = { ...QUIET, hadConflict: true, resolution: 'mine' }
    assert.equal(confirm(decided).conflict, 'Joe’s version was kept, on top of Bob’s.')
    assert.equal(confirm({ ...decided, resolution: 'server' }).conflict, 'Bob’s version was kept.')
  })

  test('open_conflict_and_waiting_decision_are_not', () => {
    assert.equal(confirm({ ...joe({ conflicts: 1 }), hadConflict: true, resolution: 'mine' }).conflict, undefined)
    assert.equal(confirm({ ...joe({ waiting: 1 }), hadConflict: true, resolution: 'mine' }).conflict, undefined)
    assert.equal(confirm({ ...QUIET, hadConflict: true }).conflict, undefined)
  })
})

describe('lost answer', () => {
  const items = [4, 5, 6].map((seq) => ({ seq, table: 'tasks', op: 'create', id: `row ${seq}` }))
  const statuses = ['applied', 'applied', 'applied']
  const lost: Upload = { startedAt: 1, at: 2, items, statuses, isLost: true }
  const again: Upload = { startedAt: 3, at: 4, items, statuses, isLost: false }

  test('repeat_with_single_rows_is_confirmed', () => {
    const found = confirm({ ...QUIET, uploads: [lost, again], repeated: [1, 1, 1] })
    assert.equal(
      found.lost,
      'Sent twice under the same numbers (4–6). The repeat got the first result again, “applied”. ' +
        'In Postgres: still 3 rows.',
    )
  })

  test('doubled_missing_and_unchecked_rows_are_not', () => {
    for (const repeated of [[1, 2, 1], [1, 0, 1], [], null])
      assert.equal(confirm({ ...QUIET, uploads: [lost, again], repeated }).lost, undefined)
    assert.equal(confirm({ ...QUIET, uploads: [lost], repeated: [1, 1, 1] }).lost, undefined)
  })
})

describe('kill', () => {
  const back: Facts = {
    ...QUIET,
    killedAt: 1000,
    engine: { state: 'up', at: 1400, downMs: 380 },
    liveAgainMs: 1700,
    check: { at: 3000, losses: 0, doubled: 0 },
  }

  test('recovery_with_a_later_check_is_confirmed', () => {
    assert.equal(confirm(back).kill, 'Engine back after 0.38 s, both devices after 1.70 s. Nothing lost.')
  })

  test('earlier_check_loss_or_missing_device_is_not', () => {
    const cases: Partial<Facts>[] = [
      { check: { at: 2000, losses: 0, doubled: 0 } },
      { check: { at: 3000, losses: 1, doubled: 0 } },
      { check: { at: 3000, losses: 0, doubled: 1 } },
      { liveAgainMs: null },
      { engine: { state: 'down', at: 1100, downMs: null } },
      { engine: { state: 'up', at: 900, downMs: 380 } },
      { bob: { isLive: true, waiting: 1 } },
    ]
    for (const part of cases) assert.equal(confirm({ ...back, ...part }).kill, undefined, JSON.stringify(part))
  })
})

describe('revoke', () => {
  test('dark_phone_is_confirmed_with_the_time_it_took', () => {
    const found = confirm({ ...joe({ access: 'revoked', endedAt: 1042 }), revokedAt: 1000 })
    assert.equal(found.revoke, 'The phone went dark 42 ms after the request.')
  })

  test('end_before_the_request_is_not', () => {
    assert.equal(confirm({ ...joe({ access: 'revoked', endedAt: 900 }), revokedAt: 1000 }).revoke, undefined)
    assert.equal(confirm(joe({ access: 'revoked', endedAt: 900 })).revoke, undefined)
  })
})

test('times_have_a_unit_that_fits', () => {
  const texts = [0.42, 9.96, 12.6, 1234, 12_345, null].map(ms)
  assert.deepEqual(texts, ['0.4 ms', '10.0 ms', '13 ms', '1.23 s', '12.3 s', '–'])
})
