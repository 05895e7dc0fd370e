import type { JsonObject } from '../json.js'
import type { ItemOp } from '../outbox/item.js'
import type { Write } from '../outbox/writes.js'
import type { Query, QueryOptions } from './query.js'

/** Describes a table of the app; made by `table`. */
export type TableDefinition<Row> = {
  /** The name in Postgres, if it is not the key under which the table is listed. */
  readonly name?: string
  /** `columns`: edits of different columns are no conflict, where the server's rule has `merge: columns`. */
  readonly merge?: 'columns'
  /** Carries the type of the rows; never set. */
  readonly row?: Row
}

/** Declares a table and the type of its rows. */
export function table<Row extends object>(definition: Omit<TableDefinition<Row>, 'row'> = {}): TableDefinition<Row> {
  return definition
}

/** The columns of a new row; without an id it gets one. */
export type NewRow<Row> = Partial<Row>

export type ReadableTable<Row> = {
  /** Rows, live, with the waiting changes applied to them. */
  query(options?: QueryOptions<Row>): Query<Row>
}

export type Table<Row> = ReadableTable<Row> & {
  create(row: NewRow<Row>): Write
  /** Changes columns of a row; based on what the user sees now. */
  edit(id: string, columns: Partial<Row>): Write
  delete(id: string): Write
}

export type MessageTable = Table<Message> & {
  /** Marks a received message as read. */
  read(id: string): Write
}

/** A message, as the API has it. */
export type Message = {
  readonly id: string
  readonly sender_id: string
  /** Of a message between users; one to a group has `group` and `number`. */
  readonly recipient_id?: string
  readonly group?: { readonly name: string; readonly id: string }
  readonly number?: number
  readonly content: string
  readonly status: string
  readonly version: number
  readonly revision: number
  readonly created_at: string
  readonly updated_at: string
  readonly synced_at: string | null
  readonly read_at: string | null
}

export type User = {
  readonly id: string
  readonly username: string
  readonly user_type: 'web' | 'mobile'
  readonly created_at: string
  readonly updated_at: string
}

/** An open conflict, see `GET /api/conflicts`. */
export type ConflictRow = { readonly id: string } & JsonObject

export type TableHost = {
  write(op: ItemOp, table: string, id: string | null, row: object, merges: boolean): Write
  query<Row>(table: string, options: QueryOptions<Row>): Query<Row>
}

export function createTable<Row>(
  host: TableHost,
  name: string,
  merges: boolean,
): Table<Row> & { read(id: string): Write } {
  return {
    query: (options = {}) => host.query<Row>(name, options),
    create: (row) => host.write('create', name, idOf(row), row, merges),
    edit: (id, columns) => host.write('edit', name, id, columns, merges),
    delete: (id) => host.write('delete', name, id, {}, merges),
    read: (id) => host.write('read', name, id, {}, merges),
  }
}

function idOf(row: object): string | null {
  return 'id' in row && (typeof row.id === 'string' || typeof row.id === 'number') ? String(row.id) : null
}
