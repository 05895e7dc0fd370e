import type { JsonObject } from '../json.js'
import type { StoredResult } from '../machine/state.js'
import type { StoreError } from '../store/store.js'
import type { Write as WriteRequest } from './item.js'

/** Whether a change is durable in the outbox, and visible in queries. */
export type LocalResult =
  { readonly ok: true } | { readonly ok: false; readonly code: string; readonly message: string }

/** What became of a change. A refusal is a value, never an exception. */
export type ServerResult = {
  /** `unknown`: the client was closed or wiped, or the change was withdrawn, before there was a result here. */
  readonly status: 'applied' | 'duplicate' | 'conflict' | 'rejected' | 'unknown'
  readonly version: number | null
  readonly code: string | null
  readonly message: string | null
  /** Of a conflict: whose content the row has now. */
  readonly winner: 'mine' | 'theirs' | null
  /** Of a conflict: the server's row; null if it was deleted. */
  readonly server: JsonObject | null
}

/** A change of the user. No promise rejects. */
export type Write = {
  /** Of the row; of a new one chosen here. */
  readonly id: string
  /** Names the change in `outbox`. */
  readonly key: string
  readonly local: Promise<LocalResult>
  readonly server: Promise<ServerResult>
}

type Pending = {
  readonly request: WriteRequest
  readonly resolveLocal: (result: LocalResult) => void
  readonly resolveServer: (result: ServerResult) => void
  isAppended: boolean
}

/** The changes of this tab that have no result. Those of one turn become one transaction. */
export class Writes {
  readonly #pending = new Map<string, Pending>()
  readonly #append: (writes: readonly WriteRequest[]) => Promise<StoreError | null>
  #queue: Pending[] = []

  constructor(append: (writes: readonly WriteRequest[]) => Promise<StoreError | null>) {
    this.#append = append
  }

  add(request: WriteRequest): Write {
    const { id, key } = request
    let [resolveLocal, resolveServer]: [Pending['resolveLocal'], Pending['resolveServer']] = [() => {}, () => {}]
    const local = new Promise<LocalResult>((resolve) => (resolveLocal = resolve))
    const server = new Promise<ServerResult>((resolve) => (resolveServer = resolve))
    const pending = { request, resolveLocal, resolveServer, isAppended: false }
    this.#pending.set(key, pending)
    if (this.#queue.length === 0) queueMicrotask(() => void this.#flush())
    this.#queue.push(pending)
    return { id, key, local, server }
  }

  /** The keys of changes that are in the outbox and have no result. */
  waiting(): string[] {
    return [...this.#pending.values()].flatMap(({ request, isAppended }) => (isAppended ? [request.key] : []))
  }

  appended(writes: readonly WriteRequest[]): void {
    for (const { key } of writes) {
      const pending = this.#pending.get(key)
      if (pending) pending.isAppended = true
    }
  }

  /** The change never reached the outbox. */
  refuse(key: string, code: string, message: string): void {
    const pending = this.#pending.get(key)
    this.#pending.delete(key)
    pending?.resolveLocal({ ok: false, code, message })
    pending?.resolveServer({ status: 'rejected', version: null, code, message, winner: null, server: null })
  }

  settle(results: ReadonlyMap<string, StoredResult | null>): void {
    for (const [key, result] of results) {
      this.#pending
        .get(key)
        ?.resolveServer(result ? toServerResult(result) : unknown('the change is no longer in the outbox'))
      this.#pending.delete(key)
    }
  }

  close(): void {
    for (const { resolveLocal, resolveServer } of this.#pending.values()) {
      resolveLocal({ ok: false, code: 'LOCAL_CLOSED', message: 'the client was closed' })
      resolveServer(unknown('the client was closed; a stored change is sent by the next one'))
    }
    this.#pending.clear()
  }

  async #flush(): Promise<void> {
    // Without those that were refused since.
    const queue = this.#queue.splice(0).filter(({ request }) => this.#pending.has(request.key))
    if (queue.length === 0) return
    const error = await this.#append(queue.map(({ request }) => request))
    for (const { request, resolveLocal } of queue) {
      if (error) this.refuse(request.key, error.code, error.message)
      else resolveLocal({ ok: true })
    }
  }
}

function toServerResult({ status, version, code, message, winner, server }: StoredResult): ServerResult {
  return { status, version, code, message, winner, server }
}

function unknown(message: string): ServerResult {
  return { status: 'unknown', version: null, code: 'LOCAL_UNKNOWN', message, winner: null, server: null }
}
