import { SPACES, StoreError, type Entry, type Key, type Op, type Read, type Store } from '../store/store.js'

/** The part of a driver that the adapter uses: that of better-sqlite3 and of `node:sqlite`. */
export type SqliteDriver = {
  exec(sql: string): unknown
  prepare(sql: string): SqliteStatement
  close(): void
}

export type SqliteStatement = {
  run(...values: (string | number)[]): unknown
  all(...values: (string | number)[]): unknown[]
}

/** Keeps everything in a SQLite file, which one client uses at a time. The adapter closes the driver with the client. */
export function sqlite(driver: SqliteDriver): Store {
  let isOpen = false
  const statements = new Map<string, SqliteStatement>()
  const statement = (sql: string): SqliteStatement => {
    const prepared = statements.get(sql) ?? driver.prepare(sql)
    statements.set(sql, prepared)
    return prepared
  }
  const select = (sql: string, values: (string | number)[]): Entry[] =>
    (statement(sql).all(...values) as { key: string; value: string }[]).map(({ key, value }) => ({
      key: decodeKey(key),
      value: JSON.parse(value) as unknown,
    }))

  const readPart = (read: Read): Entry[] => {
    const table = `posduif_${read.space}`
    if ('keys' in read) {
      const keys = new Set(read.keys.map(encodeKey))
      return [...keys].flatMap((key) => select(`SELECT key, value FROM ${table} WHERE key = ?`, [key]))
    }
    const [from, to] = read.table === undefined ? ['', '~'] : [`c${read.table}\u0000`, `c${read.table}\u0002`]
    const after = read.after === undefined ? from : encodeKey(read.after)
    const sql = `SELECT key, value FROM ${table} WHERE key > ? AND key < ? ORDER BY key LIMIT ?`
    return select(sql, [after, to, read.limit ?? -1])
  }

  const apply = (op: Op): void => {
    const table = `posduif_${op.space}`
    if (op.op === 'clear') statement(`DELETE FROM ${table}`).run()
    else if (op.op === 'delete') statement(`DELETE FROM ${table} WHERE key = ?`).run(encodeKey(op.key))
    else {
      const value = JSON.stringify(op.value)
      if (value === undefined) throw new TypeError('the value has no JSON')
      statement(`INSERT OR REPLACE INTO ${table} (key, value) VALUES (?, ?)`).run(encodeKey(op.key), value)
    }
  }

  /** Runs as one transaction; an error leaves nothing behind. */
  const atomic = <T>(work: () => T): T => {
    if (!isOpen) throw new StoreError('LOCAL_STORE_UNAVAILABLE', 'the SQLite file is not open')
    try {
      driver.exec('BEGIN IMMEDIATE')
      try {
        const result = work()
        driver.exec('COMMIT')
        return result
      } catch (error) {
        driver.exec('ROLLBACK')
        throw error
      }
    } catch (error) {
      throw storeError(error)
    }
  }

  return {
    kind: 'sqlite',
    sharedName: null,
    open: async () => {
      if (isOpen) return
      try {
        driver.exec('PRAGMA journal_mode = WAL')
        // Every transaction is durable: a file is not written often enough for the difference to matter.
        driver.exec('PRAGMA synchronous = FULL')
        for (const space of SPACES) {
          driver.exec(
            `CREATE TABLE IF NOT EXISTS posduif_${space} (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID`,
          )
        }
        isOpen = true
      } catch (error) {
        throw storeError(error)
      }
    },
    read: async (reads) => atomic(() => reads.map(readPart)),
    transaction: async (ops, checks) =>
      atomic(() => {
        const value = (key: Key) => readPart({ space: 'meta', keys: [key] })[0]?.value ?? 0
        if (checks.some(({ key, equals }) => value(key) !== equals)) return false
        for (const op of ops) apply(op)
        return true
      }),
    clear: async () =>
      atomic(() => {
        for (const space of SPACES) apply({ op: 'clear', space })
      }),
    close: () => {
      if (isOpen) driver.close()
      isOpen = false
      statements.clear()
    },
  }
}

/** Keys as texts of the same order: numbers, then texts, then lists. Table names contain no control characters. */
function encodeKey(key: Key): string {
  if (typeof key === 'number') return `a${String(key).padStart(16, '0')}`
  if (typeof key === 'string') return `b${key}`
  return `c${key[0]}\u0001${key[1]}`
}

function decodeKey(key: string): Key {
  const rest = key.slice(1)
  if (key.startsWith('a')) return Number(rest)
  if (key.startsWith('b')) return rest
  const end = rest.indexOf('\u0001')
  return [rest.slice(0, end), rest.slice(end + 1)]
}

function storeError(error: unknown): StoreError {
  if (error instanceof StoreError) return error
  const message = error instanceof Error ? error.message : String(error)
  const isFull = /\bfull\b|SQLITE_FULL/i.test(message)
  return new StoreError(isFull ? 'LOCAL_QUOTA' : 'LOCAL_STORE_FAILED', `SQLite failed: ${message}`)
}
