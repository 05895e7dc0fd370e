// A server in memory that follows docs/api.md for rows of an own table: the machine is tested against its promises. Its one
// user is user-1. A row with the column `lists` is seen by those audiences only.
import type { JsonObject } from '../../src/json.js'
import type { Batch, Change, ItemResult } from '../../src/machine/event.js'
import type { Item } from '../../src/outbox/item.js'
import { membership } from './scene.js'

type Row = { title: string; version: number; lists?: string }

type Entry = { change: Change; before?: readonly string[] | undefined }

const CONFLICTS = 'message_conflicts'

const PAGE = 2

/** The number of an item is known, and its result no longer kept. */
export class DeviceRestored extends Error {
  readonly expected: number

  constructor(expected: number) {
    super('DEVICE_RESTORED')
    this.expected = expected
  }
}

export class FakeServer {
  readonly rows = new Map<string, Row>()
  /** Which the user has not decided, on any device or page. */
  readonly conflicts = new Set<string>()
  /** How often each item took effect. */
  readonly effects = new Map<string, number>()
  /** The lists that the user is a member of, and where in the log each membership began. */
  readonly #members = new Map<string, number>()
  #log: Entry[] = []
  /** Entries before this one are gone. */
  #start = 0
  #results = new Map<number, ItemResult>()
  #last = 0

  /** Another device, or SQL. */
  change(id: string, title: string | null, lists = this.rows.get(id)?.lists): void {
    const row = this.rows.get(id)
    if (title === null) {
      if (row) this.#store(id, null)
    } else this.#store(id, { title, version: (row?.version ?? 0) + 1, ...(lists && { lists }) })
  }

  join(id: string): void {
    if (this.#members.has(`list:${id}`)) return
    this.#members.set(`list:${id}`, this.#log.length)
    this.#log.push({ change: membership('join', id) })
  }

  leave(id: string): void {
    if (this.#members.delete(`list:${id}`)) this.#log.push({ change: membership('leave', id) })
  }

  /** What the user sees. */
  get visible(): Map<string, Row> {
    return new Map([...this.rows].filter(([, row]) => this.#isSeen(viaOf(row))))
  }

  /** A group's changes are read from behind the join on, and not at all once the membership has ended. */
  #isSeen(via: readonly string[] | undefined, at = this.#log.length): boolean {
    return !via || via.some((name) => name === 'user:user-1' || (this.#members.get(name) ?? Infinity) < at)
  }

  /** The user decides a conflict, here or on another page: a repeat changes nothing. */
  resolve(id: string): void {
    if (this.conflicts.delete(id)) this.#log.push({ change: { ...conflictRow(id), op: 'delete', row: null }, before: [] })
  }

  /** Devices with an older cursor get a snapshot. */
  trim(): void {
    this.#start = this.#log.length
  }

  incoming(cursor: string | null): Batch {
    const batch = { messages: [], users: [], reset: false, hasMore: false }
    const [kind, at = '0', after = '', list = ''] = cursor?.split(' ') ?? []
    const position = Number(at)
    if (kind === 'scope' && position >= this.#start) return this.#scope(list, position, after)
    if (kind === 'stream' && position >= this.#start) return this.#stream(position)
    // A snapshot is in the order of ids, and the log follows from where it was at the snapshot's beginning.
    const isFirst = kind !== 'snapshot' || position < this.#start
    const from = isFirst ? this.#log.length : position
    const rest = [...this.visible.keys()].sort().filter((id) => isFirst || id > after)
    const page = rest.slice(0, PAGE)
    const joins = isFirst ? [...this.#members.keys()].map((name) => membership('join', name.slice(5))) : []
    const conflicts = isFirst ? [...this.conflicts].map(conflictRow) : []
    const changes = [...joins, ...conflicts, ...page.map((id) => this.#insert(id))]
    if (rest.length > PAGE)
      return { ...batch, changes, reset: isFirst, hasMore: true, cursor: `snapshot ${from} ${page.at(-1)}` }
    return { ...batch, changes, reset: isFirst, cursor: `stream ${from}` }
  }

  /** The rows of a list that was joined; the log follows from behind the join. */
  #scope(list: string, from: number, after: string): Batch {
    const isMember = this.#members.has(list)
    const ids = [...this.rows].filter(([, row]) => isMember && viaOf(row)?.includes(list)).map(([id]) => id)
    const rest = ids.sort().filter((id) => id > after)
    const page = rest.slice(0, PAGE)
    const isLast = rest.length <= PAGE
    return {
      messages: [],
      users: [],
      changes: page.map((id) => this.#insert(id)),
      reset: false,
      hasMore: !isLast || from < this.#log.length,
      scope: list,
      cursor: isLast ? `stream ${from}` : `scope ${from} ${page.at(-1)} ${list}`,
    }
  }

  outgoing(items: readonly Item[], ackedSeq: number): ItemResult[] {
    for (const seq of [...this.#results.keys()]) if (seq < ackedSeq - 3) this.#results.delete(seq)
    return items.map((item) => {
      const known = this.#results.get(item.seq)
      // Only the row of a conflict is current.
      if (known) return known.status === 'conflict' ? { ...known, server: this.#seenRow(item.id) } : known
      if (item.seq <= this.#last) throw new DeviceRestored(this.#last + 1)
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
      return this.#write(item, { title: '', version: 1 })
    }
    let base = item.baseVersion
    if (item.baseSeq !== null) {
      const result = this.#results.get(item.baseSeq)
      if (!result || result.status === 'rejected' || result.status === 'conflict') {
        return answer({ status: 'rejected', code: 'DEPENDS_ON_FAILED' })
      }
      base = result.version
    }
    if (!row || !this.#isSeen(viaOf(row))) return answer({ status: 'rejected', code: 'NOT_FOUND' })
    if (base === null) throw new Error('a change without a base')
    if (row.version > base) {
      const conflictId = `conflict ${item.seq}`
      this.conflicts.add(conflictId)
      this.#log.push({ change: conflictRow(conflictId) })
      const server = this.#seenRow(item.id)
      return answer({ status: 'conflict', winner: 'theirs', version: row.version, conflictId, server })
    }
    if (item.op === 'delete') return this.#store(item.id, null)
    return this.#write(item, { ...row, version: row.version + 1 })
  }

  /** The user puts rows into their own lists only. */
  #write({ id, row: columns }: Item, row: Row): ItemResult {
    const next = { ...row, ...columns } as Row
    if (columns['lists'] !== undefined && !this.#isSeen(viaOf(next)))
      return answer({ status: 'rejected', code: 'FORBIDDEN' })
    return this.#store(id, next)
  }

  #store(id: string, row: Row | null): ItemResult {
    const op = row ? (this.rows.has(id) ? 'update' : 'insert') : 'delete'
    const before = this.rows.get(id)
    if (row) this.rows.set(id, row)
    else this.rows.delete(id)
    const change = row ? { ...this.#insert(id), op } : deletion(id)
    this.#log.push({ change, before: before ? viaOf(before) : [] })
    return answer({ status: 'applied', version: row?.version ?? null })
  }

  #row(id: string): JsonObject {
    return { id, ...this.rows.get(id)! }
  }

  #insert(id: string): Change {
    const via = viaOf(this.rows.get(id)!)
    return { table: 'tasks', op: 'insert', id, row: this.#row(id), ...(via && { via }) }
  }

  #seenRow(id: string): JsonObject | null {
    return this.visible.has(id) ? this.#row(id) : null
  }

  #stream(from: number): Batch {
    const newest = new Map<string, Change>()
    let to = from
    let joined: string | null = null
    while (to < this.#log.length && newest.size < PAGE && joined === null) {
      const { change, before } = this.#log[to]!
      const id = change.id!
      const isMembership = change.group !== undefined
      const isSeen = isMembership || change.table === CONFLICTS || (change.row !== null && this.#isSeen(change.via, to))
      if (isSeen || this.#isSeen(before, to)) {
        const name = isMembership ? `member ${to}` : id
        // A row that was deleted and created again comes in two batches.
        if (newest.get(name)?.op === 'delete') break
        // It comes at the place of its newest version.
        newest.delete(name)
        newest.set(name, isSeen ? change : deletion(id))
      }
      to += 1
      // A batch ends after a join.
      if (change.op === 'join') joined = `list:${id}`
    }
    return {
      messages: [],
      users: [],
      changes: [...newest.values()],
      reset: false,
      hasMore: joined !== null || to < this.#log.length,
      cursor: joined === null ? `stream ${to}` : `scope ${to}  ${joined}`,
    }
  }
}

function viaOf({ lists }: Row): readonly string[] | undefined {
  return lists?.split(' ')
}

/** Only the user whose change lost it sees it. */
function conflictRow(id: string): Change {
  return { table: CONFLICTS, op: 'insert', id, row: { id } }
}

function deletion(id: string): Change {
  return { table: 'tasks', op: 'delete', id, row: null }
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
    overtaken: false,
    ...part,
  }
}
