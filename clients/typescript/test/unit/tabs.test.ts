// Several tabs on one storage, with random interleavings, crashes and changes of the leader, against a server in memory.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import type { Effect } from '../../src/machine/effect.js'
import type { RowId } from '../../src/machine/event.js'
import type { StoredRow } from '../../src/machine/state.js'
import { transition } from '../../src/machine/transition.js'
import { memory } from '../../src/memory/index.js'
import { Session } from '../../src/session/session.js'
import { storeBatch, storeResults } from '../../src/sync/steps.js'
import type { Store } from '../../src/store/store.js'
import { DeviceRestored, FakeServer } from './server.js'

/** The stories are the same in each run; another seed tells others. */
const SEED = Number(process.env['POSDUIF_CLIENT_SEED'] ?? 7)

const TABS = 3

const tab = fc.nat({ max: TABS - 1 })

const action = fc.oneof(
  { weight: 5, arbitrary: fc.record({ do: fc.constantFrom('create', 'edit'), tab }) },
  { weight: 6, arbitrary: fc.record({ do: fc.constantFrom('answer', 'answer', 'lose answer', 'lose request'), tab }) },
  { weight: 4, arbitrary: fc.record({ do: fc.constantFrom('receive', 'load', 'retry', 'sync'), tab }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constantFrom('lead', 'crash', 'elsewhere', 'trim', 'join', 'leave'), tab }) },
)

type Action = typeof action extends fc.Arbitrary<infer T> ? T : never

/** Each operation of the storage takes a random number of turns; the order of transactions stays. */
function slow(store: Store, seed: number): Store {
  let state = seed
  const pause = async () => {
    state = (state * 1103515245 + 12345) & 0x7fffffff
    for (let turns = state % 4; turns > 0; turns -= 1) await Promise.resolve()
  }
  return {
    ...store,
    read: async (reads) => {
      await pause()
      const entries = await store.read(reads)
      await pause()
      return entries
    },
    transaction: async (...values) => {
      await pause()
      const isStored = await store.transaction(...values)
      await pause()
      return isStored
    },
  }
}

class Tab {
  readonly session: Session
  request: (Effect & { ticket: number }) | null = null
  /** What other tabs have changed, and this one has not been notified of. */
  inbox: (readonly RowId[] | null)[] = []
  isDead = false

  constructor(store: Store, post: (from: Tab, rows: readonly RowId[] | null) => void) {
    const ignore = () => {}
    this.session = new Session(store, {
      run: (effect) => {
        if ('ticket' in effect) this.request = effect
      },
      stored: ({ rows }) => post(this, rows),
      notify: ignore,
      changed: ignore,
      deposed: ignore,
      failed: ignore,
      appended: ignore,
      waiting: () => [],
      settled: ignore,
    })
    this.session.transition = transition
  }
}

class Browser {
  readonly server = new FakeServer()
  readonly store = memory()
  readonly durable = new Set<string>()
  tabs: Tab[] = []
  #count = 0
  readonly #seed: number

  constructor(seed: number) {
    this.#seed = seed
    this.server.join('1')
    this.server.change('a', 'first', 'list:1')
  }

  async open(): Promise<Tab> {
    const tab = new Tab(slow(this.store, this.#seed + this.#count++), (from, rows) => {
      for (const other of this.tabs) if (other !== from) other.inbox.push(rows)
    })
    await tab.session.start(() => {})
    return tab
  }

  async start(): Promise<void> {
    for (let n = 0; n < TABS; n += 1) this.tabs.push(await this.open())
    const { session } = this.tabs[0]!
    await session.lead(false, false)
    await session.dispatch({ type: 'enroll', enrollment: { by: 'code', token: 'code' }, freshId: 'device-1' })
    await session.dispatch({
      type: 'enrolled',
      ticket: session.state.ticket,
      userId: 'u',
      deviceId: 'device-1',
      token: 't',
    })
  }

  async play({ do: what, tab: place }: Action): Promise<void> {
    const tab = this.tabs[place]!
    const { session } = tab
    switch (what) {
      case 'create':
      case 'edit': {
        const key = `k${++this.#count}`
        const id = what === 'create' ? `row-${key}` : 'a'
        const write = {
          key,
          table: 'tasks',
          op: what as 'create',
          id,
          row: { title: key },
          merges: false,
          at: '2026-01-01T00:00:00Z',
        }
        const error = await session.write([write])
        // An edit of a row that is not here yet is refused.
        if (!error && what === 'create' && !tab.isDead) this.durable.add(key)
        return
      }
      case 'receive': {
        const inbox = tab.inbox.splice(0)
        if (inbox.length === 0) return
        await session.reload(inbox.includes(null) ? null : inbox.flatMap((rows) => rows ?? []))
        return
      }
      case 'load':
        session.view.follow('tasks', () => {})
        await session.load('tasks')
        return
      case 'retry':
        await session.dispatch({ type: 'retry', lane: 'up' })
        await session.dispatch({ type: 'retry', lane: 'down' })
        return
      case 'sync':
        await session.dispatch({ type: 'sync', by: 'user' })
        return
      case 'lead':
        await session.lead(false, false)
        return
      case 'crash':
        tab.isDead = true
        session.close()
        this.tabs[place] = await this.open()
        return
      case 'elsewhere':
        this.server.change('a', `elsewhere ${++this.#count}`)
        return
      case 'trim':
        this.server.trim()
        return
      case 'join':
      case 'leave':
        this.server[what]('1')
        return
      default:
        await this.answer(tab, what)
    }
  }

  async answer(tab: Tab, fate: string): Promise<void> {
    const { request } = tab
    tab.request = null
    if (!request) return
    const { session } = tab
    const { ticket } = request
    const lose = () => session.dispatch({ type: 'failed', ticket, failure: { kind: 'lost', message: '' }, freshId: '' })
    if (fate === 'lose request') return void (await lose())
    if (request.type === 'fetch') {
      const batch = this.server.incoming(request.cursor)
      await (fate === 'answer' ? storeBatch(session, ticket, request.cursor, batch, 0) : lose())
    } else if (request.type === 'upload') {
      try {
        const results = this.server.outgoing(request.items, request.ackedSeq)
        await (fate === 'answer' ? storeResults(session, ticket, results) : lose())
      } catch (error) {
        // Of a former leader, whose request was on its way while the next one went on. It must not number anything again.
        if (!(error instanceof DeviceRestored)) throw error
        const { expected, message: code } = error
        const failure = { kind: 'refused', status: 409, code, message: code, expected } as const
        await session.dispatch({ type: 'failed', ticket, failure, freshId: '' })
      }
    } else if (request.type === 'acknowledge') {
      await (fate === 'answer' ? session.dispatch({ type: 'acknowledged', ticket }) : lose())
    }
  }

  async finish(): Promise<void> {
    const leader = this.tabs[0]!
    await leader.session.lead(false, false)
    for (let left = 300; left > 0; left -= 1) {
      if (leader.request) await this.answer(leader, 'answer')
      else if (left > 100) await leader.session.dispatch({ type: 'sync', by: 'user' })
      else return
    }
    throw new Error('the leader does not become idle')
  }
}

test('tabs that write, crash and take the lead at once lose and repeat nothing', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.nat(),
      fc.array(fc.array(action, { minLength: 1, maxLength: 3 }), { maxLength: 40, size: 'max' }),
      async (seed, turns) => {
        const browser = new Browser(seed)
        await browser.start()
        // What is in one turn happens at once.
        for (const turn of turns) await Promise.all(turn.map((each) => browser.play(each)))
        await browser.finish()
        const { server, store } = browser
        const [rows = [], outbox = []] = await store.read([{ space: 'rows' }, { space: 'outbox' }])
        assert.deepEqual(outbox, [])
        const stored = rows
          .filter(({ key, value }) => key[0 as never] === 'tasks' && !(value as StoredRow).isDeleted)
          .map(({ key, value }) => [key[1 as never], (value as StoredRow).row] as const)
        const there = [...server.visible].map(([id, row]) => [id, { id, ...row }] as const)
        assert.deepEqual(Object.fromEntries(stored), Object.fromEntries(there))
        for (const key of browser.durable) assert.equal(server.effects.get(key), 1, `the change ${key}`)
        for (const [key, count] of server.effects) assert.equal(count, 1, key)
        for (const tab of browser.tabs) {
          tab.session.view.follow('tasks', () => {})
          await tab.session.load('tasks')
          await tab.session.reload(null)
          assert.deepEqual(Object.fromEntries(tab.session.view.rows('tasks') ?? []), Object.fromEntries(there))
        }
      },
    ),
    { seed: SEED, numRuns: 80 },
  )
})
