import { ApiError, session, url } from './client'
import { clock as realClock, type Clock } from './clock'
import { Ring, Tails } from './ring'
import { read } from './session'
import { Store } from './store'
import { EventStream, type Link, type Source } from './stream'
import type { Figures, FiguresHistory } from './types'

/** Figures come each second; after this silence the connection is opened again. */
const SILENCE_MS = 6000

export type FiguresState = {
  link: Link
  /** Since when it is so, by the clock that never goes back. */
  linkSince: number
  latest: Figures | null
  /** When the latest figures came. */
  receivedAt: number | null
  /** Starts of engines that were seen, in seconds since 1970. */
  restarts: number[]
}

/** The one stream of figures of the page and what it has received. */
export class FiguresFeed {
  readonly state: Store<FiguresState>
  readonly ring = new Ring()
  /** Retained WAL of each slot. */
  readonly slots = new Tails()
  readonly #clock: Clock
  readonly #stream: EventStream

  constructor(clock: Clock, connect: (url: string) => Source, mayRetry: () => Promise<boolean>) {
    this.#clock = clock
    this.state = new Store<FiguresState>({
      link: 'connecting',
      linkSince: clock.now(),
      latest: null,
      receivedAt: null,
      restarts: [],
    })
    this.#stream = new EventStream({
      clock,
      connect,
      url: url(['figures']),
      silenceMs: SILENCE_MS,
      mayRetry,
      events: {
        history: (data) => this.ring.merge(data as FiguresHistory),
        figures: (data) => this.#receive(data as Figures),
      },
      onLink: (link) => {
        if (link !== this.state.value.link) this.state.patch({ link, linkSince: clock.now() })
      },
    })
  }

  start(): void {
    this.#stream.start()
  }

  stop(): void {
    this.#stream.stop()
  }

  #receive(figures: Figures): void {
    const { latest, restarts } = this.state.value
    this.ring.push(figures.row)
    if (figures.slots) {
      this.slots.retain(new Set(figures.slots.map((slot) => slot.name)))
      for (const slot of figures.slots) this.slots.push(slot.name, slot.retained_wal_bytes ?? 0)
    }
    const isRestart = latest !== null && latest.engine !== figures.engine
    this.state.patch({
      latest: figures,
      receivedAt: this.#clock.now(),
      ...(isRestart ? { restarts: [...restarts, figures.at].slice(-20) } : {}),
    })
  }
}

/** Whether the session still exists, so far as the engine can be reached. */
async function hasSession(): Promise<boolean> {
  try {
    session.set(await read())
    return true
  } catch (error) {
    return !(error instanceof ApiError && error.status === 401)
  }
}

export const figures = new FiguresFeed(realClock, (address) => new EventSource(address) as Source, hasSession)
