import type { Clock } from '../clock.js'

export type LeaderOptions = {
  /** Null: this client is the only one. */
  readonly name: string | null
  readonly locks: LockManager | undefined
  readonly clock: Clock
  readonly isVisible: () => boolean
  /** Requests a sign of the leader, which comes to `leaderAnswered`. */
  readonly ping: () => void
  readonly beat: () => void
  readonly onLead: () => void
  readonly onLose: () => void
}

const TICK_MS = 1000

/** Own ticks without a sign of the leader, after which a visible tab asks and then takes over. */
const SILENT_TICKS_PING = 2
const SILENT_TICKS_STEAL = 6

/** Least time between two thefts; it doubles, so that a tab whose channel is dead does not take turns with a healthy leader. */
const STEAL_PAUSE_MS = 60_000

/**
 * Decides whether this tab leads. The lock is granted when the former leader ends or crashes; one that is stopped keeps the
 * lock, and loses it to a tab that has received nothing for some seconds of its own time.
 */
export class Leader {
  leads = false
  readonly #options: LeaderOptions
  #release: (() => void) | null = null
  #request: AbortController | null = null
  #isCandidate = false
  #silentTicks = 0
  #cancelTick = () => {}
  #cancelQueue = () => {}
  #pauseMs = STEAL_PAUSE_MS
  #stoleAt = Number.NEGATIVE_INFINITY
  /** Answers of an earlier candidacy are ignored. */
  #turn = 0

  constructor(options: LeaderOptions) {
    this.#options = options
  }

  /** Becomes the leader as soon as there is none. */
  start(): void {
    if (this.#isCandidate) return
    this.#isCandidate = true
    const { name, locks } = this.#options
    if (name === null || !locks) return this.#lead(() => {})
    this.#queue()
    this.#tick()
  }

  /** Hands over, and does not lead again before `start`. */
  stop(): void {
    this.#isCandidate = false
    this.#turn += 1
    this.#cancelTick()
    this.#cancelQueue()
    this.#request?.abort()
    this.#lose()
  }

  /** The leader has given a sign of life. */
  leaderAnswered(): void {
    this.#silentTicks = 0
  }

  #queue(): void {
    const control = new AbortController()
    this.#request = control
    this.#acquire({ signal: control.signal })
  }

  #acquire(options: LockOptions): void {
    const turn = this.#turn
    const { name, locks } = this.#options
    const held = (): Promise<void> | undefined => {
      if (turn !== this.#turn) return undefined
      // The lock is held until the promise settles.
      return new Promise((resolve) => this.#lead(resolve))
    }
    // Safari rejects when the page ends; nothing is left to do then.
    locks?.request(`posduif:${name}`, options, held).then(
      () => {},
      () => {
        // Stolen, or the request was withdrawn.
        if (turn !== this.#turn) return
        this.#lose()
        // Where locks are refused, as in a sandboxed frame, this must not become a loop without a pause.
        this.#cancelQueue = this.#options.clock.schedule(() => this.#queue(), TICK_MS)
      },
    )
  }

  #lead(release: () => void): void {
    this.#release = release
    this.leads = true
    this.#options.onLead()
  }

  #lose(): void {
    if (!this.leads) return
    this.leads = false
    this.#release?.()
    this.#release = null
    this.#options.onLose()
  }

  #tick(): void {
    const { clock, isVisible, ping, beat } = this.#options
    this.#cancelTick = clock.schedule(() => {
      if (this.leads) beat()
      else if (isVisible()) {
        this.#silentTicks += 1
        if (this.#silentTicks >= SILENT_TICKS_PING) ping()
        if (this.#silentTicks >= SILENT_TICKS_STEAL) this.#steal()
      }
      this.#tick()
    }, TICK_MS)
  }

  #steal(): void {
    const now = this.#options.clock.now()
    if (now - this.#stoleAt < this.#pauseMs) return
    if (Number.isFinite(this.#stoleAt)) this.#pauseMs *= 2
    this.#stoleAt = now
    this.#silentTicks = 0
    // The own request in the queue would be granted when this one ends.
    this.#turn += 1
    this.#request?.abort()
    this.#acquire({ steal: true })
  }
}
