import { demo } from './api'
import { CHECKED_TABLES, findDoubled, findLosses, type Loss, type Rows } from './counters'
import type { Feed } from './feed'
import type { PaneName } from './journey'
import type { Pane } from './pane'
import type { Screen } from './screen'
import type { Ledger } from './tag'
import { Value } from './value'

export type Check = {
  readonly at: number
  readonly rows: number
  readonly tags: number
  readonly losses: readonly (Loss & { readonly pane: PaneName })[]
  readonly doubled: readonly string[]
  /** The tags of Joe's rows in Postgres, with those that are there more than once. */
  readonly truth: Rows
}

/** Why there is no check now; null: there is one. */
export type Hold = string | null

const PAUSE_MS = 2000
const SOON_MS = 120

/** A row that is on its way is not lost: only after this time is it counted. */
const GRACE_MS = 4000

const AGAIN_MS = 250

/** Compares the panes with Postgres whenever both claim to have everything. */
export class Checker {
  readonly last: Value<Check | null> = new Value<Check | null>(null)
  readonly hold: Value<Hold> = new Value<Hold>('starting')
  readonly #panes: readonly Pane[]
  readonly #screens: Readonly<Record<PaneName, Screen>>
  readonly #users: Readonly<Record<PaneName, string>>
  readonly #ledger: Ledger
  #timer: ReturnType<typeof setTimeout> | undefined
  #isRunning = false

  constructor(
    panes: readonly Pane[],
    screens: Readonly<Record<PaneName, Screen>>,
    users: Readonly<Record<PaneName, string>>,
    ledger: Ledger,
    feed: Feed,
  ) {
    this.#panes = panes
    this.#screens = screens
    this.#users = users
    this.#ledger = ledger
    for (const { client, access, faults, tasks, messages } of panes) {
      for (const source of [client.status, access, faults.state, tasks, messages])
        source.subscribe(() => this.#soon(SOON_MS))
    }
    feed.engine.subscribe(() => this.#soon(SOON_MS))
    this.#soon(0)
  }

  #soon(ms: number): void {
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => void this.#run(), ms)
  }

  async #run(): Promise<void> {
    this.hold.set(holdOf(this.#panes))
    if (this.#isRunning) return
    if (this.hold.getSnapshot() !== null || document.hidden) return this.#soon(PAUSE_MS)
    this.#isRunning = true
    try {
      const check = await this.#check()
      if (check) this.last.set(check)
    } catch {
      // The server of the page does not answer; the age of the last check grows.
    }
    this.#isRunning = false
    this.#soon(PAUSE_MS)
  }

  /** Null: a pane went offline, or got something to send, before there was a result. */
  async #check(): Promise<Check | null> {
    const deadline = Date.now() + GRACE_MS
    for (;;) {
      const [joe, bob] = await Promise.all([demo.truth(this.#users.joe), demo.truth(this.#users.bob)])
      if (holdOf(this.#panes) !== null) return null
      const losses = [
        ...findLosses(joe, this.#screens.joe.rows).map((loss) => ({ ...loss, pane: 'joe' as const })),
        ...findLosses(bob, this.#screens.bob.rows).map((loss) => ({ ...loss, pane: 'bob' as const })),
      ]
      if (losses.length === 0 || Date.now() >= deadline) {
        const rows = CHECKED_TABLES.reduce((sum, table) => sum + joe[table].length + bob[table].length, 0)
        const { tags } = this.#ledger
        return { at: Date.now(), rows, tags: tags.size, losses, doubled: findDoubled(joe, tags), truth: joe }
      }
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS))
    }
  }
}

function holdOf(panes: readonly Pane[]): Hold {
  for (const pane of panes) {
    const who = pane.name === 'joe' ? 'Joe' : 'Bob'
    const { upToDate, outbox } = pane.status
    if (pane.access.getSnapshot() === 'revoked') return `${who}’s phone is revoked`
    if (pane.access.getSnapshot() !== 'ready') return `${who}’s device is being added`
    if (pane.faults.state.getSnapshot().offline) return `${who} is offline`
    if (outbox.waiting > 0) return `${who} has changes to send`
    if (!upToDate) return `${who} is reconnecting`
  }
  return null
}
