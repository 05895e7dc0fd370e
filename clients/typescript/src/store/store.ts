/**
 * What an adapter stores and how. The client keeps four spaces:
 *
 * | space | key | value |
 * |---|---|---|
 * | `rows` | `[table, id]` | a row as the server sent it, with its generation |
 * | `outbox` | `seq` | a change of the user without a result |
 * | `results` | the key of an item | the result of a change, until the user or the client forgets it |
 * | `meta` | a name | identity, cursor, counters |
 *
 * Keys are ordered: numbers before strings before lists, lists by their elements.
 */
export type Space = 'rows' | 'outbox' | 'results' | 'meta'

/** All spaces, for adapters. */
export const SPACES: readonly Space[] = ['rows', 'outbox', 'results', 'meta']

export type Key = string | number | readonly [string, string]

export type Entry = { readonly key: Key; readonly value: unknown }

/** One part of a read: named keys, or a range of a space. */
export type Read =
  | { readonly space: Space; readonly keys: readonly Key[] }
  /** All keys; of `rows` those of one table, and at most `limit` after a key. */
  | { readonly space: Space; readonly table?: string; readonly after?: Key; readonly limit?: number }

export type Op =
  | { readonly op: 'put'; readonly space: Space; readonly key: Key; readonly value: unknown }
  | { readonly op: 'delete'; readonly space: Space; readonly key: Key }
  | { readonly op: 'clear'; readonly space: Space }

/** The transaction is applied only while the value of this key in `meta` equals the number; a missing value is 0. */
export type Check = { readonly key: string; readonly equals: number }

export type Durability = 'strict' | 'relaxed'

/**
 * A storage adapter. Each method rejects with a `StoreError` when the storage fails, and settles within a bound.
 * The suite in `contract.ts` tests every adapter.
 */
export interface Store {
  /** What the storage is, for `status.storage`. */
  readonly kind: 'indexeddb' | 'memory' | 'sqlite'
  /** The name that all clients of the same data share: of the lock and the channel. Null: this client is the only one. */
  readonly sharedName: string | null
  /** Opens or creates the storage. `onLost` is called once if it is closed from outside. Repeating it is harmless. */
  open(onLost: (reason: 'outdated' | 'closed') => void): Promise<void>
  /** Reads all parts as of one moment. A part of named keys has an entry only for those that exist. */
  read(reads: readonly Read[]): Promise<Entry[][]>
  /**
   * Applies all operations or none, in order. Resolves to `false`, without effect, if a check fails, and to `true` once
   * the transaction is durable as asked: `strict` survives a power cut.
   */
  transaction(ops: readonly Op[], checks: readonly Check[], durability: Durability): Promise<boolean>
  /** Deletes everything. */
  clear(): Promise<void>
  close(): void
}

/** The storage failed. `LOCAL_QUOTA`: it is full. `LOCAL_NO_STORE`: this platform does not have it, now or later. */
export class StoreError extends Error {
  override readonly name = 'StoreError'
  readonly code:
    'LOCAL_QUOTA' | 'LOCAL_NO_STORE' | 'LOCAL_STORE_UNAVAILABLE' | 'LOCAL_STORE_FAILED' | 'LOCAL_STORE_TIMEOUT'

  constructor(code: StoreError['code'], message: string) {
    super(message)
    this.code = code
  }
}

/** The order of keys, for adapters that have none of their own. */
export function compareKeys(one: Key, other: Key): number {
  const rank = (key: Key) => (typeof key === 'number' ? 0 : typeof key === 'string' ? 1 : 2)
  if (rank(one) !== rank(other)) return rank(one) - rank(other)
  if (typeof one === 'object' && typeof other === 'object') {
    return compareText(one[0], other[0]) || compareText(one[1], other[1])
  }
  return one < other ? -1 : one > other ? 1 : 0
}

function compareText(one: string, other: string): number {
  return one < other ? -1 : one > other ? 1 : 0
}
