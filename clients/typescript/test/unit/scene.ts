import type { JsonObject } from '../../src/json.js'
import { CONFLICTS, endsSnapshot, regroupedBy, rowsOf } from '../../src/machine/batch.js'
import type { Effect, Notice, Step } from '../../src/machine/effect.js'
import type { Batch, Change, Event, ItemResult, RowId } from '../../src/machine/event.js'
import { rowsInFlight } from '../../src/machine/results.js'
import {
  INITIAL,
  phase,
  rowName,
  type Failure,
  type State,
  type StoredResult,
  type StoredRow,
} from '../../src/machine/state.js'
import { transition } from '../../src/machine/transition.js'
import type { Item, ItemOp } from '../../src/outbox/item.js'
import { overlay } from '../../src/outbox/overlay.js'

const APPLIED: ItemResult = {
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
}

/** A device without a network: the machine, and a storage in a map. A test answers its requests. */
export class Scene {
  state: State = INITIAL
  rows = new Map<string, StoredRow>()
  results = new Map<string, StoredResult>()
  effects: Effect[] = []
  #request: (Effect & { ticket: number }) | undefined
  #keys = 0
  #ids = 0

  /** A leader with a token that has not requested anything. */
  static fresh(): Scene {
    const scene = Scene.unenrolled()
    scene.do({ type: 'enroll', enrollment: { by: 'code', token: 'code' }, freshId: 'device-1' })
    scene.enrolled('user-1')
    return scene
  }

  static unenrolled(): Scene {
    const scene = new Scene()
    scene.do({ type: 'leads', leads: true, live: false, hasCredentials: false })
    return scene
  }

  /** After the first page of a snapshot of two. */
  static snapshot(): Scene {
    const scene = Scene.fresh()
    scene.batch({ reset: true, hasMore: true, cursor: 'c1', messages: [message('m1')] })
    return scene
  }

  /** After a snapshot with the message m1 and the tasks t1 and t2. */
  static stream(): Scene {
    const scene = Scene.fresh()
    scene.batch({
      reset: true,
      cursor: 'c1',
      messages: [message('m1')],
      changes: [insert('t1', { title: 'milk', version: 1 }), insert('t2', { title: 'bread', version: 1 })],
    })
    scene.acknowledged()
    return scene
  }

  get phase() {
    return phase(this.state.device)
  }

  /** The last request that has no answer. */
  get request(): Effect & { ticket: number } {
    const last = this.#request
    if (!last || last.ticket !== this.state.ticket || !this.state.busy) throw new Error('no request is in flight')
    return last
  }

  do(event: Event): Step {
    const step = transition(this.state, event)
    this.#store(step)
    return step
  }

  #store(step: Step): void {
    if (step.clears) {
      this.rows.clear()
      this.results.clear()
    }
    for (const [table, id, row] of step.rows) {
      if (row) this.rows.set(rowName(table, id), row)
      else this.rows.delete(rowName(table, id))
    }
    for (const [key, result] of step.results) {
      if (result) this.results.set(key, result)
      else this.results.delete(key)
    }
    this.state = step.state
    this.effects.push(...step.effects)
    for (const effect of step.effects) if ('ticket' in effect) this.#request = effect
  }

  /** Removes and returns the effects so far. */
  taken(): Effect[] {
    return this.effects.splice(0)
  }

  notices(): Notice[] {
    return this.effects.flatMap((effect) => (effect.type === 'notify' ? [effect.notice] : []))
  }

  sync(by: 'user' | 'hint' | 'timer' = 'user'): void {
    this.do({ type: 'sync', by })
  }

  enrolled(userId: string, deviceId = this.state.device.deviceId ?? '', token = `token of ${userId}`): void {
    this.do({ type: 'enrolled', ticket: this.request.ticket, userId, deviceId, token })
  }

  batch(part: Partial<Batch>): void {
    const request = this.request
    if (request.type !== 'fetch') throw new Error(`${request.type} is in flight`)
    const batch: Batch = { messages: [], users: [], changes: [], cursor: 'c', hasMore: false, reset: false, ...part }
    const generation = this.state.device.generation + (batch.reset ? 1 : 0)
    const old: RowId[] = []
    if (endsSnapshot(batch, this.state)) {
      for (const [name, row] of this.rows) if (row.generation < generation) old.push(split(name))
    }
    const stored = this.#read(rowsOf(batch, this.state))
    const isRegrouped = regroupedBy(batch, this.state)
    const regrouped: RowId[] = []
    for (const [name, row] of this.rows) {
      if (!isRegrouped?.(row)) continue
      regrouped.push(split(name))
      stored.set(name, row)
    }
    const conflicts = new Map<string, StoredResult>()
    for (const result of this.results.values()) {
      if (result.isOpen !== false && result.conflictId) conflicts.set(result.conflictId, result)
    }
    for (const [name, row] of this.#read([...conflicts.keys()].map((id) => [CONFLICTS, id]))) stored.set(name, row)
    const { ticket, cursor } = request
    this.do({ type: 'batch', ticket, requested: cursor, at: 1, batch, old, regrouped, stored, conflicts })
  }

  answer(...results: Partial<ItemResult>[]): void {
    const request = this.request
    if (request.type !== 'upload') throw new Error(`${request.type} is in flight`)
    const all = results.map((result) => ({ ...APPLIED, ...result }))
    this.do({ type: 'results', ticket: request.ticket, stored: this.#read(rowsInFlight(this.state, all)), results: all })
  }

  acknowledged(): void {
    const request = this.request
    if (request.type !== 'acknowledge') throw new Error(`${request.type} is in flight`)
    this.do({ type: 'acknowledged', ticket: request.ticket })
  }

  fail(failure: Failure): void {
    this.do({ type: 'failed', ticket: this.request.ticket, failure, freshId: `device-${++this.#ids + 1}` })
  }

  lose(): void {
    this.fail({ kind: 'lost', message: 'no answer' })
  }

  later(retryAfter: number | null = 3000): void {
    this.fail({ kind: 'later', code: 'REDIS_ERROR', message: 'Redis is down', retryAfter })
  }

  /** The token ends with the request in flight, or with the next one. */
  end(): void {
    if (!this.state.busy) this.sync()
    this.fail({ kind: 'ended', code: 'DEVICE_REVOKED', message: 'revoked' })
  }

  refuse(status: number, code: string, expected: number | null = null): void {
    this.fail({ kind: 'refused', status, code, message: code, expected })
  }

  /** The server no longer accepts the cursor. */
  refuseCursor(): void {
    this.sync()
    this.refuse(400, 'INVALID_CURSOR')
  }

  retry(lane: 'up' | 'down' | 'auth' | 'live'): void {
    this.do({ type: 'retry', lane })
  }

  write(op: ItemOp, table: string, id: string, row: JsonObject = {}): string {
    const key = `k${++this.#keys}`
    this.do({
      type: 'write',
      writes: [{ key, table, op, id, row, merges: false, at: '2026-01-01T00:00:00Z' }],
      stored: this.#read([[table, id]]),
    })
    return key
  }

  event(name: string, id: string | null = null, data: JsonObject = {}): void {
    this.do({ type: 'liveEvent', name, id, data })
  }

  /** The process ends; another one reads the storage. */
  crash(): void {
    const { device, outbox } = this.state
    this.state = INITIAL
    this.effects = []
    this.do({ type: 'loaded', device, outbox })
    this.do({ type: 'leads', leads: true, live: false, hasCredentials: false })
  }

  /** What the storage has now, to be restored later. */
  copy(): () => void {
    const { device, outbox } = this.state
    const rows = new Map(this.rows)
    return () => {
      this.rows = new Map(rows)
      this.state = { ...INITIAL, device, outbox }
      this.crash()
    }
  }

  stored(table: string, id: string): JsonObject | null {
    const stored = this.rows.get(rowName(table, id))
    return !stored || stored.isDeleted ? null : stored.row
  }

  /** What the user sees. */
  seen(table: string, id: string): JsonObject | null {
    const items = this.state.outbox.filter((item) => item.table === table && item.id === id)
    return overlay(this.stored(table, id), items, this.state.device.userId)
  }

  ids(table: string): string[] {
    return [...this.rows]
      .filter(([, { isDeleted }]) => !isDeleted)
      .map(([name]) => split(name))
      .filter(([name]) => name === table)
      .map(([, id]) => id)
      .sort()
  }

  outbox(): Item[] {
    return [...this.state.outbox]
  }

  /** The items of the upload in flight. */
  get uploading(): readonly Item[] {
    const request = this.request
    if (request.type !== 'upload') throw new Error(`${request.type} is in flight`)
    return request.items
  }

  #read(rows: readonly RowId[]): Map<string, StoredRow> {
    const stored = new Map<string, StoredRow>()
    for (const [table, id] of rows) {
      const row = this.rows.get(rowName(table, id))
      if (row) stored.set(rowName(table, id), row)
    }
    return stored
  }
}

function split(name: string): [string, string] {
  const end = name.indexOf('\0')
  return [name.slice(0, end), name.slice(end + 1)]
}

export function message(id: string, columns: JsonObject = {}): JsonObject {
  return {
    id,
    sender_id: 'user-1',
    recipient_id: 'user-2',
    content: `text of ${id}`,
    version: 1,
    revision: 1,
    created_at: '2026-01-01T00:00:00Z',
    read_at: null,
    ...columns,
  }
}

export function insert(id: string, columns: JsonObject, op = 'insert'): Change {
  return { table: 'tasks', op, id, row: { id, ...columns } }
}

/** A task that only these audiences see. */
export function shared(id: string, columns: JsonObject, ...via: string[]): Change {
  return { table: 'tasks', op: 'update', id, row: { id, ...columns }, via }
}

/** A membership of lists begins or ends. */
export function membership(op: 'join' | 'leave', id: string): Change {
  return { table: '', op, id, row: null, group: 'list' }
}

export function remove(id: string, table = 'tasks'): Change {
  return { table, op: 'delete', id, row: null }
}

export function task(title: string, version = 1): JsonObject {
  return { title, version }
}
