import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { Feed, type Panes } from '../../demo/model/feed'
import { addChange, addStep, delivered, percentile, published, type ChangeEvent } from '../../demo/model/journey'
import { Ledger, splitTag, tagsOf } from '../../demo/model/tag'

const insert: ChangeEvent = {
  id: '7-1',
  table: 'tasks',
  op: 'insert',
  row_id: 'a',
  committed_at: 1000,
  columns: ['id', 'title'],
}

const paneOf = (device: string) => (device === 'joes-phone' ? ('joe' as const) : null)

const step = (name: 'published' | 'durable' | 'delivered', ms: number, device: string | null = null) => ({
  id: '7-1',
  step: name,
  device,
  ms,
})

describe('journey', () => {
  test('steps_fill_the_stops_of_their_device', () => {
    let journeys = addChange([], insert)
    journeys = addStep(journeys, step('published', 1.5), paneOf)
    journeys = addStep(journeys, step('durable', 3), paneOf)
    journeys = addStep(journeys, step('delivered', 6, 'joes-phone'), paneOf)
    journeys = addStep(journeys, step('delivered', 6, 'a stranger'), paneOf)
    const [journey] = journeys
    assert.deepEqual([journey?.publishedMs, journey?.durableMs], [1.5, 3])
    assert.deepEqual(journey?.panes, { joe: { delivered: 6 }, bob: {} })
  })

  test('repeated_and_internal_changes_are_not_added', () => {
    const journeys = addChange([], insert)
    assert.equal(addChange(journeys, insert), journeys)
    assert.equal(addChange(journeys, { ...insert, id: '8-1', table: 'devices' }), journeys)
  })

  test('late_report_of_publishing_is_bounded_by_a_reader', () => {
    const print = (ms: number | null | undefined) => String(ms)
    const [early] = addStep(addChange([], insert), step('published', 2), paneOf)
    assert.equal(early && published(early, print), '2')
    const reported = addStep(addChange([], insert), step('published', 90), paneOf)
    const [late] = addStep(reported, step('delivered', 6, 'joes-phone'), paneOf)
    assert.equal(late && published(late, print), '≤ 6')
    assert.equal(delivered({ delivered: 1951, screen: 24 }, print), '≤ 24')
    assert.equal(delivered({ delivered: 9, screen: 24 }, print), '9')
  })

  test('first_report_of_a_step_stays', () => {
    const once = addStep(addChange([], insert), step('published', 2), paneOf)
    assert.equal(addStep(once, step('published', 3000), paneOf), once)
  })

  test('percentile_of_nothing_is_null', () => {
    assert.equal(percentile([], 0.5), null)
    assert.equal(percentile([3, 1, 2], 0.5), 2)
    assert.equal(percentile([1, 2, 3, 4], 0.99), 4)
  })
})

const panes: Panes = { named: paneOf, isOwn: () => false, isWriting: () => false }

describe('feed', () => {
  const painted = { pane: 'joe', table: 'tasks', rowId: 'a', at: 1020, connectedSince: 1 } as const

  test('row_painted_after_its_change_is_measured', () => {
    const feed = new Feed(panes)
    feed.change(insert)
    feed.painted(painted)
    assert.deepEqual(feed.samples.getSnapshot(), [20])
    assert.equal(feed.journeys.getSnapshot()[0]?.panes.joe.screen, 20)
  })

  test('row_painted_before_the_event_is_measured', () => {
    const feed = new Feed(panes)
    feed.painted(painted)
    feed.change(insert)
    assert.deepEqual(feed.samples.getSnapshot(), [20])
  })

  test('own_changes_earlier_paints_and_other_rows_are_not', () => {
    const own = new Feed({ ...panes, isOwn: () => true })
    own.change(insert)
    own.painted(painted)
    assert.deepEqual(own.samples.getSnapshot(), [])
    assert.equal(own.journeys.getSnapshot()[0]?.panes.joe.isOwn, true)
    const feed = new Feed(panes)
    feed.painted({ ...painted, at: 900 })
    feed.painted({ ...painted, rowId: 'b' })
    feed.change(insert)
    assert.deepEqual(feed.samples.getSnapshot(), [])
  })

  test('row_with_an_own_change_on_the_way_is_not_sampled', () => {
    const feed = new Feed({ ...panes, isWriting: () => true })
    feed.change(insert)
    feed.painted(painted)
    assert.equal(feed.journeys.getSnapshot()[0]?.panes.joe.screen, 20)
    assert.deepEqual(feed.samples.getSnapshot(), [])
  })

  test('absence_of_a_device_is_shown_and_not_sampled', () => {
    const feed = new Feed(panes)
    feed.change(insert)
    feed.painted({ ...painted, at: 61_000, connectedSince: 60_000 })
    assert.equal(feed.journeys.getSnapshot()[0]?.panes.joe.screen, 60_000)
    assert.deepEqual(feed.samples.getSnapshot(), [])
  })
})

describe('tags', () => {
  test('text_gets_one_tag_that_replaces_the_former', () => {
    const ledger = new Ledger(null)
    const first = ledger.mark('Milk')
    const second = ledger.mark(first)
    assert.match(first, /^Milk #[a-z0-9]{4}$/)
    assert.equal(splitTag(second).text, 'Milk')
    assert.notEqual(first, second)
    assert.equal(ledger.tags.size, 2)
  })

  test('statement_that_runs_again_gets_new_tags', () => {
    const ledger = new Ledger(null)
    const statement = "INSERT INTO tasks (title) VALUES ('Milk #ab12')"
    assert.equal(ledger.refresh(statement), statement)
    ledger.add('ab12')
    assert.notDeepEqual(tagsOf(ledger.refresh(statement)), ['ab12'])
  })

  test('tags_survive_a_reload', () => {
    const stored = new Map<string, string>()
    const storage = {
      getItem: (key: string) => stored.get(key) ?? null,
      setItem: (key: string, value: string) => void stored.set(key, value),
    }
    const text = new Ledger(storage).mark('Milk')
    assert.deepEqual([...new Ledger(storage).tags], tagsOf(text))
  })
})
