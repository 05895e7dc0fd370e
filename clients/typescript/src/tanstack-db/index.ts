import type { Write } from '../outbox/writes.js'
import type { Table } from '../tables/table.js'

// The parts of TanStack DB's types that are used here: an app has its own version of the library.

type SyncParameters<Row> = {
  begin: () => void
  write: (message: { type: 'insert' | 'update'; value: Row } | { type: 'delete'; key: string }) => void
  commit: () => unknown
  markReady: () => void
}

type Mutations<Row> = {
  transaction: { mutations: readonly { key: unknown; modified: Row; changes: Partial<Row> }[] }
}

export type CollectionOptions<Row extends object> = {
  id: string
  getKey: (row: Row) => string
  sync: { sync: (parameters: SyncParameters<Row>) => () => void; rowUpdateMode: 'full' }
  onInsert: (mutations: Mutations<Row>) => Promise<void>
  onUpdate: (mutations: Mutations<Row>) => Promise<void>
  onDelete: (mutations: Mutations<Row>) => Promise<void>
}

/**
 * Options for `createCollection` of TanStack DB: the rows of a table with the waiting changes applied to them, and changes of
 * the collection in the outbox. A change is no longer optimistic there as soon as it is durable here; if the server refuses it
 * later, the row returns to what the server has, and `client.on('rejected')` reports it.
 */
export function toCollectionOptions<Row extends { readonly id: string }>(
  table: Table<Row>,
  options: { readonly id: string },
): CollectionOptions<Row> {
  return {
    id: options.id,
    getKey: (row) => row.id,
    sync: {
      rowUpdateMode: 'full',
      sync: ({ begin, write, commit, markReady }) => {
        const query = table.query()
        let shown: ReadonlyMap<string, Row> = new Map()
        let isReady = false
        const update = () => {
          const { rows, phase } = query.getSnapshot()
          if (phase === 'loading') return
          const next = new Map(rows.map((row) => [row.id, row]))
          begin()
          // Rows that did not change keep their reference.
          for (const [id, row] of next) {
            const before = shown.get(id)
            if (before !== row) write({ type: before ? 'update' : 'insert', value: row })
          }
          for (const id of shown.keys()) if (!next.has(id)) write({ type: 'delete', key: id })
          commit()
          shown = next
          if (!isReady) markReady()
          isReady = true
        }
        const stop = query.subscribe(update)
        update()
        return stop
      },
    },
    onInsert: ({ transaction }) => stored(transaction.mutations.map(({ modified }) => table.create(modified))),
    onUpdate: ({ transaction }) =>
      stored(transaction.mutations.map(({ key, changes }) => table.edit(String(key), changes))),
    onDelete: ({ transaction }) => stored(transaction.mutations.map(({ key }) => table.delete(String(key)))),
  }
}

/** Resolves when all changes are durable in the outbox; the collection withdraws them if one is not. */
async function stored(writes: readonly Write[]): Promise<void> {
  for (const { local } of writes) {
    const result = await local
    if (!result.ok) throw new Error(`${result.code}: ${result.message}`)
  }
}
