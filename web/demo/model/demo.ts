import { indexeddb } from '@posduif/client/indexeddb'
import { memory } from '@posduif/client/memory'
import { demo, Session, type Setup } from './api'
import { Checker } from './checker'
import { countTagged } from './counters'
import { Faults, lastRepeat } from './faults'
import { Feed } from './feed'
import { Pane } from './pane'
import { Screen } from './screen'
import { Sql } from './sql'
import { confirm, type Facts, type StepId } from './story'
import { Ledger, tagsOf } from './tag'
import { until, Value } from './value'

const ENROLL_AGAIN_MS = 20_000

/** Everything that the page shows, and what its buttons do. */
export class Demo {
  readonly setup: Setup
  readonly joe: Pane
  readonly bob: Pane
  readonly feed: Feed
  readonly checker: Checker
  readonly sql: Sql
  readonly screens: { readonly joe: Screen; readonly bob: Screen }
  /** Another tab has the stored devices, so the devices of this one end with it. */
  readonly isSecond: boolean
  readonly outcomes: Value<Partial<Record<StepId, string>>> = new Value<Partial<Record<StepId, string>>>({})
  readonly killedAt: Value<number | null> = new Value<number | null>(null)
  readonly revokedAt: Value<number | null> = new Value<number | null>(null)
  readonly notice: Value<string | null> = new Value<string | null>(null)
  readonly #session: Session
  readonly #ledger: Ledger
  readonly #liveAgainMs = new Value<number | null>(null)
  #hadConflict = false
  #resolution: 'mine' | 'server' | null = null

  constructor(setup: Setup, isSecond: boolean) {
    this.setup = setup
    this.isSecond = isSecond
    this.#session = new Session(setup)
    this.#ledger = new Ledger(storage())
    const store = (name: 'joe' | 'bob') =>
      isSecond ? memory() : indexeddb(`posduif-demo-${name}-${setup.users[name]}`)
    const mark = (text: string) => this.#ledger.mark(text)
    // A browser has six connections to one server, and each SSE takes one: WebSockets are not counted.
    const live = isSecond ? 'websocket' : 'auto'
    const bobs = new Faults()
    this.joe = new Pane({
      name: 'joe',
      setup,
      store: store('joe'),
      faults: new Faults(),
      live,
      device: { name: 'joes-phone', type: 'mobile' },
      mark,
      enter: async (client) => {
        const outcome = await client.enroll(await this.#session.enrollment(setup.users.joe))
        return outcome.ok ? null : outcome.message
      },
    })
    this.bob = new Pane({
      name: 'bob',
      setup,
      store: store('bob'),
      faults: bobs,
      live,
      device: { name: 'bobs-browser', type: 'browser' },
      mark,
      // The client itself calls `credentials` when it has no device, and after a revocation when it is asked to.
      enter: async (client) => {
        void client.sync()
        const isAdded = () => client.status.getSnapshot().state !== 'unenrolled'
        const isIn = await until([client.status], isAdded, ENROLL_AGAIN_MS)
        return isIn ? null : (client.status.getSnapshot().error?.message ?? 'the engine does not answer')
      },
      credentials: async ({ reason }) => {
        if (reason === 'refused') this.#session.end()
        return { token: await this.#session.token(bobs.fetch) }
      },
    })
    this.feed = new Feed({
      named: (device) => this.panes.find((pane) => pane.faults.deviceId.getSnapshot() === device)?.name ?? null,
      isOwn: (pane, table, id, committedAt) => this[pane].isOwn(table, id, committedAt),
      isWriting: (pane, table, id, committedAt) => this[pane].isWriting(table, id, committedAt),
    })
    this.screens = { joe: new Screen(this.joe, this.feed), bob: new Screen(this.bob, this.feed) }
    this.checker = new Checker(this.panes, this.screens, setup.users, this.#ledger, this.feed)
    this.sql = new Sql(setup, this.#ledger)
  }

  get panes(): readonly [Pane, Pane] {
    return [this.joe, this.bob]
  }

  start(): void {
    this.feed.connect('/demo/api/events')
    for (const pane of this.panes) void pane.start()
    const sources = [
      this.feed.journeys,
      this.feed.engine,
      this.checker.last,
      this.killedAt,
      this.revokedAt,
      this.#liveAgainMs,
      ...this.panes.flatMap(({ client, outbox, access, faults }) => {
        return [client.status, outbox, access, faults.state, faults.uploads]
      }),
    ]
    for (const source of sources) source.subscribe(() => this.#judge())
  }

  kill = async (): Promise<void> => {
    this.killedAt.set(Date.now())
    this.#liveAgainMs.set(null)
    await this.#attempt(demo.kill())
  }

  restartRedis = (): Promise<void> => this.#attempt(demo.restartRedis())

  revoke = async (): Promise<void> => {
    const device = this.joe.faults.deviceId.getSnapshot()
    if (device === null) return
    this.revokedAt.set(Date.now())
    await this.#attempt(this.#session.revoke(device))
  }

  expireToken = (pane: Pane): void => {
    pane.faults.expireToken()
    void pane.client.sync()
  }

  resolve = async (pane: Pane, key: string, choice: 'mine' | 'server'): Promise<void> => {
    if (pane === this.joe) this.#resolution = choice
    await pane.resolve(key, choice)
    this.#judge()
  }

  openConsole = async (): Promise<void> => {
    const opened = window.open('about:blank', '_blank')
    if (opened) opened.opener = null
    await this.#attempt(
      demo.consoleLink().then(({ url }) => {
        if (opened) opened.location.href = url
        else location.href = url
      }),
    )
  }

  get facts(): Facts {
    const { joe, bob, feed, checker } = this
    const check = checker.last.getSnapshot()
    const engine = feed.engine.getSnapshot()
    return {
      journeys: feed.journeys.getSnapshot(),
      joe: {
        isOffline: joe.faults.state.getSnapshot().offline,
        isLive: joe.connectedSince.getSnapshot() !== null,
        access: joe.access.getSnapshot(),
        waiting: joe.status.outbox.waiting,
        conflicts: joe.status.outbox.conflicts,
        endedAt: joe.endedAt.getSnapshot(),
      },
      bob: { isLive: bob.connectedSince.getSnapshot() !== null, waiting: bob.status.outbox.waiting },
      hadConflict: this.#hadConflict,
      resolution: this.#resolution,
      uploads: joe.faults.uploads.getSnapshot(),
      repeated: this.#repeated(),
      killedAt: this.killedAt.getSnapshot(),
      engine: { state: engine.state, at: engine.at, downMs: engine.downMs },
      liveAgainMs: this.#liveAgainMs.getSnapshot(),
      check: check && { at: check.at, losses: check.losses.length, doubled: check.doubled.length },
      revokedAt: this.revokedAt.getSnapshot(),
    }
  }

  /** Counts the rows of the upload whose answer was lost, in a check that began after the repeat. */
  #repeated(): readonly number[] | null {
    const repeat = lastRepeat(this.joe.faults.uploads.getSnapshot())
    const check = this.checker.last.getSnapshot()
    if (!repeat || !check || check.at < repeat.at) return null
    const shown = [...this.joe.tasks.getSnapshot().rows, ...this.joe.messages.getSnapshot().rows]
    const tags = repeat.items.flatMap(({ id }) => {
      const row = shown.find((each) => each.id === id)
      return row ? tagsOf('title' in row ? row.title : row.content).slice(-1) : []
    })
    return countTagged(check.truth, tags)
  }

  #judge(): void {
    const { joe, bob, feed } = this
    if (joe.status.outbox.conflicts > 0) this.#hadConflict = true
    const killedAt = this.killedAt.getSnapshot()
    const engine = feed.engine.getSnapshot()
    const isBack = killedAt !== null && engine.state === 'up' && engine.at >= killedAt
    if (isBack && this.#liveAgainMs.getSnapshot() === null) {
      const since = [joe, bob].map((pane) => pane.connectedSince.getSnapshot() ?? Number.NEGATIVE_INFINITY)
      const last = Math.max(...since)
      if (since.every((at) => at > killedAt)) this.#liveAgainMs.set(last - killedAt)
    }
    const found = confirm(this.facts)
    // A step that was seen once stays done; a repeat replaces its outcome.
    this.outcomes.update((outcomes) => {
      const next = { ...outcomes, ...found }
      return JSON.stringify(next) === JSON.stringify(outcomes) ? outcomes : next
    })
  }

  /** What a button could not do is shown. */
  async #attempt(action: Promise<unknown>): Promise<void> {
    try {
      await action
      this.notice.set(null)
    } catch (error) {
      this.notice.set(error instanceof Error ? error.message : String(error))
    }
  }
}

function storage(): Storage | null {
  try {
    return sessionStorage
  } catch {
    return null
  }
}
