import { backoff, type Clock } from './clock'

/** What is used of an EventSource. */
export type Source = {
  onopen: ((event: Event) => void) | null
  onerror: ((event: Event) => void) | null
  addEventListener(type: string, listener: (event: MessageEvent<string>) => void): void
  close(): void
}

export type Link = 'connecting' | 'open' | 'broken'

export type StreamOptions = {
  clock: Clock
  connect: (url: string) => Source
  url: string
  /** Silence after which the connection counts as broken; `null` if silence is normal. */
  silenceMs: number | null
  events: Record<string, (data: unknown) => void>
  onLink: (link: Link) => void
  /** After each failure: whether to connect again. */
  mayRetry: () => Promise<boolean>
}

/** A connection must live this long before its end counts as the first failure again. */
const STABLE_MS = 5000

/** How long a connection may take to open. */
const OPEN_MS = 10_000

/**
 * One event stream, connected again after random, growing delays. EventSource repeats attempts itself, but neither
 * notices silence nor gives up on a session that ended, so each attempt has its own.
 */
export class EventStream {
  readonly #options: StreamOptions
  #source: Source | null = null
  #failures = 0
  #openedAt: number | null = null
  #cancelTimer: () => void = () => {}
  #cancelSilence: () => void = () => {}
  #generation = 0

  constructor(options: StreamOptions) {
    this.#options = options
  }

  start(): void {
    if (this.#source) return
    this.#options.onLink('connecting')
    this.#open()
  }

  stop(): void {
    this.#generation += 1
    this.#close()
  }

  #open(): void {
    const { clock, connect, url, events } = this.#options
    this.#generation += 1
    const generation = this.#generation
    const isCurrent = (): boolean => generation === this.#generation
    const source = connect(url)
    this.#source = source
    this.#openedAt = null
    this.#cancelTimer = clock.schedule(() => isCurrent() && this.#fail(), OPEN_MS)
    source.onopen = () => {
      if (!isCurrent()) return
      this.#cancelTimer()
      this.#openedAt = clock.now()
      this.#options.onLink('open')
      this.#expect()
    }
    source.onerror = () => {
      if (isCurrent()) this.#fail()
    }
    for (const [name, handle] of Object.entries(events)) {
      source.addEventListener(name, (event) => {
        if (!isCurrent()) return
        this.#expect()
        handle(JSON.parse(event.data))
      })
    }
  }

  #expect(): void {
    const { clock, silenceMs } = this.#options
    this.#cancelSilence()
    if (silenceMs === null) return
    const generation = this.#generation
    this.#cancelSilence = clock.schedule(() => generation === this.#generation && this.#fail(), silenceMs)
  }

  #fail(): void {
    const { clock, mayRetry, onLink } = this.#options
    if (this.#openedAt !== null && clock.now() - this.#openedAt >= STABLE_MS) this.#failures = 0
    this.#close()
    this.#generation += 1
    const generation = this.#generation
    onLink('broken')
    const delay = backoff(this.#failures, clock.random())
    this.#failures += 1
    this.#cancelTimer = clock.schedule(() => {
      void mayRetry().then(
        (may) => generation === this.#generation && may && this.#open(),
        () => generation === this.#generation && this.#open(),
      )
    }, delay)
  }

  #close(): void {
    this.#cancelTimer()
    this.#cancelSilence()
    this.#source?.close()
    this.#source = null
  }
}
