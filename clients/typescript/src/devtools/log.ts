import type { Clock } from '../clock.js'
import { Signal, type Unsubscribe } from '../emitter.js'
import type { JsonObject } from '../json.js'

/** One line of the log. `what`: a change of the status, an event, a request, or what the developer did. */
export type Line = {
  readonly at: string
  readonly what: 'status' | 'event' | 'request' | 'devtools'
  readonly data: JsonObject
}

const LINES_MAX = 500

/** The last lines, in memory. */
export class Log {
  readonly #clock: Clock
  readonly #signal = new Signal(console.error)
  #lines: readonly Line[] = []

  constructor(clock: Clock) {
    this.#clock = clock
  }

  get lines(): readonly Line[] {
    return this.#lines
  }

  readonly subscribe = (listener: () => void): Unsubscribe => this.#signal.subscribe(listener)

  add(what: Line['what'], data: JsonObject): void {
    const at = new Date(this.#clock.now()).toISOString()
    this.#lines = [...this.#lines.slice(1 - LINES_MAX), { at, what, data }]
    this.#signal.notify()
  }

  clear(): void {
    this.#lines = []
    this.#signal.notify()
  }

  /** One JSON object in each line. */
  text(): string {
    return this.#lines.map((line) => JSON.stringify(line)).join('\n')
  }
}

/** The fields that differ, with their new values. */
export function changed(before: JsonObject, after: JsonObject): JsonObject {
  return Object.fromEntries(
    Object.entries(after).filter(([name, value]) => JSON.stringify(before[name]) !== JSON.stringify(value)),
  )
}
