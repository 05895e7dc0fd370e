import {
  compareKeys,
  SPACES,
  StoreError,
  type Check,
  type Durability,
  type Entry,
  type Key,
  type Op,
  type Read,
  type Store,
} from '../store/store.js'

/** Of the layout of the spaces, not of the app's tables. */
const LAYOUT = 1

const TIMEOUT_MS = 15_000

/** Above this number, named rows are read as a range: each request is an object that the browser must collect later. */
const KEYS_MANY = 16

type Options = {
  /** Default: the global `indexedDB`. */
  readonly factory?: IDBFactory
  readonly timeoutMs?: number
}

/**
 * Keeps everything in the browser's IndexedDB, in a database of its own. All tabs of the origin that open the same name
 * share it.
 */
export function indexeddb(name: string, { factory, timeoutMs = TIMEOUT_MS }: Options = {}): Store {
  // One connection per tab: of two requests that wait for an old tab only the first one is notified.
  let opened: Promise<IDBDatabase> | null = null
  let lost: (reason: 'outdated' | 'closed') => void = () => {}
  /** Whether rows that are read together lie together, as those of a page of a snapshot do. */
  let isDense = true

  const close = (): void => {
    opened?.then(
      (database) => database.close(),
      () => {},
    )
    opened = null
  }

  const connect = (): Promise<IDBDatabase> =>
    bounded(timeoutMs, `opening the database ${name}`, (resolve, reject) => {
      const source = factory ?? globalThis.indexedDB
      if (!source) {
        const message = 'there is no IndexedDB here: create the client in the browser only, or with memory()'
        return reject(new StoreError('LOCAL_NO_STORE', message))
      }
      const request = source.open(name, LAYOUT)
      request.onupgradeneeded = () => {
        for (const space of SPACES) {
          if (!request.result.objectStoreNames.contains(space)) request.result.createObjectStore(space)
        }
      }
      request.onerror = () => reject(storeError(request.error, 'LOCAL_STORE_UNAVAILABLE'))
      request.onsuccess = () => {
        const database = request.result
        // A newer build in another tab waits for this one.
        database.onversionchange = () => {
          close()
          lost('outdated')
        }
        // The browser closed it: the user has cleared the storage, or the disk failed.
        database.onclose = () => {
          opened = null
          lost('closed')
        }
        resolve(database)
      }
    })

  const database = (): Promise<IDBDatabase> => {
    opened ??= connect().catch((error: unknown) => {
      opened = null
      throw error
    })
    return opened
  }

  /** Begins a transaction; reopens once if the connection was closed in the meantime. */
  const begin = async (mode: IDBTransactionMode, durability: Durability): Promise<IDBTransaction> => {
    const start = (connection: IDBDatabase) => connection.transaction([...SPACES], mode, { durability })
    try {
      return start(await database())
    } catch (error) {
      if (!(error instanceof DOMException) || error.name !== 'InvalidStateError') throw storeError(error)
      opened = null
      return start(await database())
    }
  }

  const run = async <T>(
    mode: IDBTransactionMode,
    durability: Durability,
    issue: (transaction: IDBTransaction) => () => T,
  ): Promise<T> => {
    const transaction = await begin(mode, durability)
    return bounded(timeoutMs, `a transaction of the database ${name}`, (resolve, reject) => {
      let result: () => T
      // Success of a request is not durability; at the quota only `abort` fires.
      transaction.oncomplete = () => resolve(result())
      transaction.onabort = () => reject(storeError(transaction.error))
      try {
        result = issue(transaction)
      } catch (error) {
        abort(transaction)
        reject(storeError(error))
      }
    })
  }

  return {
    kind: 'indexeddb',
    sharedName: name,
    open: async (onLost) => {
      lost = onLost
      await database()
    },
    read: async (reads) => {
      const readAll = (byRange: boolean) =>
        run('readonly', 'relaxed', (transaction) => {
          const parts = reads.map((read) =>
            byRange && isMany(read) ? readRange(transaction, read.keys) : readPart(transaction, read),
          )
          // An open transaction of a stopped tab, even of a reader, blocks all others.
          transaction.commit()
          return () => parts.map((part) => part())
        })
      const found: (Entry[] | null)[] = await readAll(isDense)
      if (found.every((part) => part !== null)) {
        if (!isDense && reads.some((read, place) => isMany(read) && found[place]?.length === 0)) isDense = true
        return found
      }
      // Other rows lie between those that were named.
      isDense = false
      return (await readAll(false)) as Entry[][]
    },
    transaction: (ops, checks, durability) =>
      run('readwrite', durability, (transaction) => {
        let isMet = true
        const issue = () => {
          if (isMet) for (const op of ops) apply(transaction, op)
          transaction.commit()
        }
        if (checks.length === 0) issue()
        else
          verify(transaction, checks, (met) => {
            isMet = met
            issue()
          })
        return () => isMet
      }),
    clear: () =>
      run('readwrite', 'strict', (transaction) => {
        for (const space of SPACES) transaction.objectStore(space).clear()
        transaction.commit()
        return () => undefined
      }),
    close,
  }
}

function readPart(transaction: IDBTransaction, read: Read): () => Entry[] {
  const store = transaction.objectStore(read.space)
  if ('keys' in read) {
    const requests = read.keys.map((key) => store.get(key as IDBValidKey))
    return () =>
      requests.flatMap(({ result }, place) =>
        result === undefined ? [] : [{ key: read.keys[place]!, value: result as unknown }],
      )
  }
  return readAllOf(store, rangeOf(read), read.limit)
}

function isMany(read: Read): read is Extract<Read, { keys: unknown }> {
  return read.space === 'rows' && 'keys' in read && read.keys.length > KEYS_MANY
}

/** Reads named rows as all between the first and the last of them; null if those are more than were named. */
function readRange(transaction: IDBTransaction, keys: readonly Key[]): () => Entry[] | null {
  const ordered = [...keys].sort(compareKeys)
  const range = IDBKeyRange.bound(ordered[0], ordered.at(-1))
  const part = readAllOf(transaction.objectStore('rows'), range, keys.length + 1)
  const wanted = new Set(keys.map(nameOf))
  return () => {
    const entries = part()
    return entries.length > keys.length ? null : entries.filter(({ key }) => wanted.has(nameOf(key)))
  }
}

function readAllOf(store: IDBObjectStore, range: IDBKeyRange | null, limit: number | undefined): () => Entry[] {
  const keys = store.getAllKeys(range, limit)
  const values = store.getAll(range, limit)
  return () => keys.result.map((key, place) => ({ key: key as Entry['key'], value: values.result[place] as unknown }))
}

/** Of a row. */
function nameOf(key: Key): string {
  return (key as readonly string[]).join('\0')
}

/** Lists are ordered by their elements, and a list is greater than any text. */
function rangeOf({ table, after }: Extract<Read, { limit?: number }>): IDBKeyRange | null {
  const from = after as IDBValidKey | undefined
  if (table !== undefined) return IDBKeyRange.bound(from ?? [table], [table, []], true, true)
  return from === undefined ? null : IDBKeyRange.lowerBound(from, true)
}

function verify(transaction: IDBTransaction, checks: readonly Check[], then: (isMet: boolean) => void): void {
  const meta = transaction.objectStore('meta')
  const requests = checks.map(({ key }) => meta.get(key))
  // Requests of a transaction are answered in order: the last one is answered when all are.
  const last = requests.at(-1)
  if (!last) return
  last.onsuccess = () => {
    try {
      then(checks.every(({ equals }, place) => (requests[place]?.result ?? 0) === equals))
    } catch {
      // A value that cannot be stored; `onabort` reports it.
      abort(transaction)
    }
  }
}

function apply(transaction: IDBTransaction, op: Op): void {
  const store = transaction.objectStore(op.space)
  if (op.op === 'put') store.put(op.value, op.key as IDBValidKey)
  else if (op.op === 'delete') store.delete(op.key as IDBValidKey)
  else store.clear()
}

function abort(transaction: IDBTransaction): void {
  try {
    transaction.abort()
  } catch {
    // It has ended by itself.
  }
}

function storeError(error: unknown, code: StoreError['code'] = 'LOCAL_STORE_FAILED'): StoreError {
  if (error instanceof StoreError) return error
  const { name, message } = error instanceof Error || error instanceof DOMException ? error : { name: '', message: '' }
  if (name === 'QuotaExceededError') {
    return new StoreError('LOCAL_QUOTA', 'the storage of this origin is full: free space on the device')
  }
  return new StoreError(code, `IndexedDB failed: ${name || 'unknown error'}${message && `: ${message}`}`)
}

/** Settles within the timeout, whatever the browser does. */
function bounded<T>(
  timeoutMs: number,
  what: string,
  start: (resolve: (value: T) => void, reject: (error: StoreError) => void) => void,
): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      reject(new StoreError('LOCAL_STORE_TIMEOUT', `${what} takes longer than ${timeoutMs / 1000} s`))
    }, timeoutMs)
    const settle =
      <V>(then: (value: V) => void) =>
      (value: V) => {
        clearTimeout(timer)
        then(value)
      }
    start(settle(resolve), settle(reject))
  })
}
