import type { JsonObject } from '../json.js'
import type { RowChange } from '../machine/effect.js'
import type { RowId } from '../machine/event.js'
import { rowName, type StoredRow } from '../machine/state.js'
import { difference } from '../outbox/difference.js'
import type { Item } from '../outbox/item.js'
import { overlay } from '../outbox/overlay.js'
import type { Entry } from '../store/store.js'

/** Called with the ids whose rows have changed; null: any may have. */
export type ViewListener = (ids: ReadonlySet<string> | null) => void

type Table = {
  isLoaded: boolean
  readonly stored: Map<string, JsonObject>
  /** What the user sees: the stored rows with the outbox applied. A row keeps its reference until it changes. */
  readonly seen: Map<string, JsonObject>
  readonly listeners: Set<ViewListener>
}

/**
 * The tables that are on the screen, in memory. A table is loaded when its first query starts. Rows and outbox change in one
 * call, so that no listener sees a row without its waiting changes.
 */
export class View {
  readonly #tables = new Map<string, Table>()
  #outbox: readonly Item[] = []
  /** The outbox by row. */
  readonly #items = new Map<string, Item[]>()
  #userId: string | null = null

  /** Starts to follow a table; the result stops it. The rows come with `load`. */
  follow(name: string, listener: ViewListener): () => void {
    const table = this.#tables.get(name) ?? {
      isLoaded: false,
      stored: new Map(),
      seen: new Map(),
      listeners: new Set(),
    }
    this.#tables.set(name, table)
    table.listeners.add(listener)
    return () => {
      table.listeners.delete(listener)
      if (table.listeners.size === 0 && this.#tables.get(name) === table) this.#tables.delete(name)
    }
  }

  /** The rows of a table as the user sees them; null until it is loaded. */
  rows(name: string): ReadonlyMap<string, JsonObject> | null {
    const table = this.#tables.get(name)
    return table?.isLoaded ? table.seen : null
  }

  isFollowed(name: string): boolean {
    return this.#tables.has(name)
  }

  followed(): string[] {
    return [...this.#tables.keys()]
  }

  /** The rows of waiting changes: a change that leaves the outbox leaves its effect in the row. */
  rowsOfItems(): RowId[] {
    return this.#outbox.filter(({ table }) => this.#tables.get(table)?.isLoaded).map(({ table, id }) => [table, id])
  }

  load(name: string, entries: readonly Entry[]): void {
    const table = this.#tables.get(name)
    if (!table) return
    table.isLoaded = true
    table.stored.clear()
    table.seen.clear()
    for (const { key, value } of entries) {
      const id = (key as readonly [string, string])[1]
      const { row, isDeleted } = value as StoredRow
      if (!isDeleted) table.stored.set(id, row)
      this.#see(name, table, id)
    }
    for (const item of this.#outbox) if (item.table === name) this.#see(name, table, item.id)
    notify(table, null)
  }

  /** Applies what one transaction has changed. */
  apply(rows: readonly RowChange[], outbox: readonly Item[], userId: string | null, clears = false): void {
    const touched = new Map<string, Set<string>>()
    const touch = (table: string, id: string) => {
      const ids = touched.get(table) ?? new Set<string>()
      touched.set(table, ids)
      ids.add(id)
    }
    const [removed, added] = difference(this.#outbox, outbox)
    this.#outbox = outbox
    const [had, has] = [keysOf(removed), keysOf(added)]
    for (const item of removed) {
      const name = rowName(item.table, item.id)
      const rest = (this.#items.get(name) ?? []).filter(({ key }) => key !== item.key)
      if (rest.length > 0) this.#items.set(name, rest)
      else this.#items.delete(name)
      if (!has.has(item.key)) touch(item.table, item.id)
    }
    for (const item of added) {
      const name = rowName(item.table, item.id)
      const items = [...(this.#items.get(name) ?? []), item]
      this.#items.set(
        name,
        items.sort((one, other) => one.seq - other.seq),
      )
      if (!had.has(item.key)) touch(item.table, item.id)
    }
    this.#userId = userId
    if (clears) for (const table of this.#tables.values()) table.stored.clear()
    for (const [table, id, stored] of rows) {
      const known = this.#tables.get(table)
      if (!known?.isLoaded) continue
      if (stored && !stored.isDeleted) known.stored.set(id, stored.row)
      else known.stored.delete(id)
      touch(table, id)
    }
    for (const [name, table] of this.#tables) {
      if (!table.isLoaded) continue
      const ids = clears
        ? new Set([...table.seen.keys(), ...table.stored.keys(), ...(touched.get(name) ?? [])])
        : touched.get(name)
      if (!ids) continue
      for (const id of ids) this.#see(name, table, id)
      notify(table, ids)
    }
  }

  #see(name: string, table: Table, id: string): void {
    const stored = table.stored.get(id) ?? null
    const row = overlay(stored, this.#items.get(rowName(name, id)) ?? [], this.#userId)
    if (row) table.seen.set(id, row)
    else table.seen.delete(id)
  }
}

function keysOf(outbox: readonly Item[]): Set<string> {
  return new Set(outbox.map(({ key }) => key))
}

function notify(table: Table, ids: ReadonlySet<string> | null): void {
  for (const listener of [...table.listeners]) listener(ids)
}
