// A server in memory that follows docs/api.md for rows of an own table: the machine is tested against its promises.
import type { JsonObject } from '../../src/json.js'
import type { Batch, Change, ItemResult } from '../../src/machine/event.js'
import type { Item } from '../../src/outbox/item.js'

type Row = { title: string; version: number }

const PAGE = 2

export class FakeServer {
  readonly rows = new Map<string, Row>()
  /** How often each item took effect. */
  readonly effects = new Map<string, number>()
  #log: Change[] = []
  /** Entries before this one are gone. */
  #start = 0
  #results = new Map<number, ItemResult>()
  #last = 0

  /** Another device, or SQL. */
  change(id: string, title: string | null): void {
    const row = this.rows.get(id)
    if (title === null) {
      if (row) this.#store(id, null)
    } else this.#store(id, { title, version: (row?.version ?? 0) + 1 })
  }

  /** Devices with an older cursor get a snapshot. */
  trim(): void {
    this.#start = this.#log.length
  }

  incoming(cursor: string | null): Batch {
    const batch = { messages: [], users: [], reset: false, hasMore: false }
    const [kind, at = '0', after = ''] = cursor?.split(':') ?? []
    const position = Number(at)
    if (kind === 'stream' && position >= this.#start) return this.#stream(position)
    // A snapshot is in the order of ids, and the log follows from where it was at the snapshot's beginning.
    const isFirst = kind !== 'snapshot' || position < this.#start
    const from = isFirst ? this.#log.length : position
    const rest = [...this.rows.keys()].sort().filter((id) => isFirst || id > after)
    const page = rest.slice(0, PAGE)
    const changes = page.map((id) => ({ table: 'tasks', op: 'insert', id, row: this.#row(id) }))
    if (rest.length > PAGE)
      return { ...batch, changes, reset: isFirst, hasMore: true, cursor: `snapshot:${from}:${page.at(-1)}` }
    return { ...batch, changes, reset: isFirst, cursor: `stream:${from}` }
  }

  outgoing(items: readonly Item[], ackedSeq: number): ItemResult[] {
    for (const seq of [...this.#results.keys()]) if (seq < ackedSeq - 3) this.#results.delete(seq)
    return items.map((item) => {
      const known = this.#results.get(item.seq)
      if (known) return known
      if (item.seq !== this.#last + 1) throw new Error(`the item ${item.seq} follows ${this.#last}`)
      this.#last = item.seq
      const result = { ...this.#apply(item), seq: item.seq }
      this.#results.set(item.seq, result)
      if (result.status === 'applied') this.effects.set(item.key, (this.effects.get(item.key) ?? 0) + 1)
      return result
    })
  }

  #apply(item: Item): ItemResult {
    const row = this.rows.get(item.id)
    if (item.op === 'create') {
      if (row) return answer({ status: 'rejected', code: 'CONFLICT' })
      return this.#store(item.id, { title: String(item.row['title']), version: 1 })
    }
    let base = item.baseVersion
    if (item.baseSeq !== null) {
      const result = this.#results.get(item.baseSeq)
      if (!result || result.status === 'rejected' || result.status === 'conflict') {
        return answer({ status: 'rejected', code: 'DEPENDS_ON_FAILED' })
      }
      base = result.version
    }
    if (!row) return answer({ status: 'rejected', code: 'NOT_FOUND' })
    if (base === null) throw new Error('a change without a base')
    if (row.version > base)
      return answer({ status: 'conflict', winner: 'theirs', version: row.version, server: this.#row(item.id) })
    if (item.op === 'delete') return this.#store(item.id, null)
    return this.#store(item.id, { title: String(item.row['title']), version: row.version + 1 })
  }

  #store(id: string, row: Row | null): ItemResult {
    const op = row ? (this.rows.has(id) ? 'update' : 'insert') : 'delete'
    if (row) this.rows.set(id, row)
    else this.rows.delete(id)
    this.#log.push({ table: 'tasks', op, id, row: row && this.#row(id) })
    return answer({ status: 'applied', version: row?.version ?? null })
  }

  #row(id: string): JsonObject {
    return { id, ...this.rows.get(id)! }
  }

  #stream(from: number): Batch {
    const newest = new Map<string, Change>()
    let to = from
    while (to < this.#log.length && newest.size < PAGE) {
      const entry = this.#log[to]!
      // A row that was deleted and created again comes in two batches.
      if (newest.get(entry.id!)?.op === 'delete') break
      newest.set(entry.id!, entry)
      to += 1
    }
    return {
      messages: [],
      users: [],
      changes: [...newest.values()],
      reset: false,
      hasMore: to < this.#log.length,
      cursor: `stream:${to}`,
    }
  }
}

function answer(part: Partial<ItemResult>): ItemResult {
  return {
    seq: null,
    status: 'applied',
    code: null,
    message: null,
    version: null,
    revision: null,
    winner: null,
    conflictId: null,
    server: null,
    ...part,
  }
}
