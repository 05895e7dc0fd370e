import { Signal } from './emitter.js'
import { isObject } from './json.js'

export type PresenceStatus = 'online' | 'away'

/** Users who are present; all others are offline. */
export type Presence = ReadonlyMap<string, PresenceStatus>

export class PresenceStore {
  readonly #signal: Signal
  #users: Presence = new Map()

  constructor(report: (error: unknown) => void) {
    this.#signal = new Signal(report)
  }

  readonly subscribe = (listener: () => void): (() => void) => this.#signal.subscribe(listener)

  readonly getSnapshot = (): Presence => this.#users

  /** Applies an event or a list of the server. */
  apply(users: unknown, isComplete: boolean): void {
    if (!Array.isArray(users)) return
    const next = new Map(isComplete ? [] : this.#users)
    for (const user of users as unknown[]) {
      if (!isObject(user) || typeof user['user_id'] !== 'string') continue
      const { user_id: id, status } = user
      if (status === 'online' || status === 'away') next.set(id as string, status)
      else next.delete(id as string)
    }
    this.replace(next)
  }

  replace(users: Presence): void {
    this.#users = users
    this.#signal.notify()
  }
}
