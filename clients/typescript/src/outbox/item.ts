import type { JsonObject } from '../json.js'

export type ItemOp = 'create' | 'edit' | 'delete' | 'read'

/** A change of the user without a result from the server. */
export type Item = {
  /** Names the change on this device; numbers may change. */
  readonly key: string
  /** Counted from 1, without gaps. */
  readonly seq: number
  readonly table: string
  readonly op: ItemOp
  /** Of the row. */
  readonly id: string
  /** The columns to write. */
  readonly row: JsonObject
  /** The own item that the user saw, or */
  readonly baseSeq: number | null
  /** the version that the user saw; for an item with a `baseSeq` that of its result, for when it is numbered again. */
  readonly baseVersion: number | null
  /** What the user saw in the columns of `row`, for tables that merge by column. */
  readonly baseRow?: JsonObject
  /** RFC 3339. */
  readonly at: string
  /**
   * `earlier`: first sent before the last `reset`, so that the snapshot may not have what it changed.
   * `overtaken`: its row was deleted after the first attempt, or replaced by one that does not compare.
   */
  readonly sent: 'no' | 'yes' | 'earlier' | 'overtaken'
}

/** A change as the user asks for it. */
export type Write = {
  readonly key: string
  readonly table: string
  readonly op: ItemOp
  readonly id: string
  readonly row: JsonObject
  readonly merges: boolean
  readonly at: string
}

/** The item in an upload: the same in each attempt. */
export function wireItem(item: Item): JsonObject {
  return {
    seq: item.seq,
    table: item.table,
    op: item.op,
    id: item.id,
    row: item.row,
    ...(item.baseSeq === null ? { base_version: item.baseVersion } : { base_seq: item.baseSeq }),
    ...(item.baseRow && { base_row: item.baseRow }),
  }
}
