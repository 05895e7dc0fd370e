export type Unsubscribe = () => void

/** Calls listeners once in a later microtask after a change: never re-entrant, and a throwing one does not stop the others. */
export class Signal {
  readonly #listeners = new Set<() => void>()
  readonly #report: (error: unknown) => void
  #isQueued = false

  constructor(report: (error: unknown) => void) {
    this.#report = report
  }

  readonly subscribe = (listener: () => void): Unsubscribe => {
    // One function may be subscribed twice.
    const entry = () => listener()
    this.#listeners.add(entry)
    return () => void this.#listeners.delete(entry)
  }

  readonly notify = (): void => {
    if (this.#isQueued || this.#listeners.size === 0) return
    this.#isQueued = true
    queueMicrotask(() => {
      this.#isQueued = false
      for (const listener of [...this.#listeners]) {
        try {
          listener()
        } catch (error) {
          this.#report(error)
        }
      }
    })
  }
}
