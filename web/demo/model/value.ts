/** Something that a view can show and follow; queries and statuses of the client have this form too. */
export type Readable<T> = {
  readonly subscribe: (listener: () => void) => () => void
  readonly getSnapshot: () => T
}

/** A value with listeners. Setting the same value again notifies no listener. */
export class Value<T> implements Readable<T> {
  #value: T
  readonly #listeners = new Set<() => void>()

  constructor(value: T) {
    this.#value = value
  }

  readonly getSnapshot = (): T => this.#value

  readonly subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener)
    return () => void this.#listeners.delete(listener)
  }

  set(value: T): void {
    if (Object.is(value, this.#value)) return
    this.#value = value
    for (const listener of [...this.#listeners]) listener()
  }

  update(change: (value: T) => T): void {
    this.set(change(this.#value))
  }
}

/** Resolves when the condition holds, to whether it did within the time. */
export function until(sources: readonly Readable<unknown>[], holds: () => boolean, ms: number): Promise<boolean> {
  return new Promise((resolve) => {
    const settle = (result: boolean) => {
      clearTimeout(timer)
      for (const stop of stops) stop()
      resolve(result)
    }
    const timer = setTimeout(() => settle(holds()), ms)
    const stops = sources.map((source) => source.subscribe(() => holds() && settle(true)))
    if (holds()) settle(true)
  })
}
