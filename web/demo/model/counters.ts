import { tagsOf } from './tag'

/** A row as a pane shows it or as SQL returns it. */
export type SeenRow = {
  readonly id: string
  readonly version?: number | null
  readonly revision?: number | null
  readonly title?: string
  readonly done?: boolean
  readonly content?: string
  readonly name?: string
}

export type Rows = Readonly<Record<'tasks' | 'messages' | 'lists', readonly SeenRow[]>>

export const CHECKED_TABLES = ['tasks', 'messages', 'lists'] as const

/** Contents that are compared besides the version. */
const COLUMNS = ['title', 'done', 'content', 'name'] as const

export type Loss = {
  readonly table: string
  readonly id: string
  readonly what: 'missing' | 'older' | 'different' | 'deleted there, shown here'
}

/** What a pane lacks of the rows that its user may see in Postgres. */
export function findLosses(truth: Rows, shown: Rows): Loss[] {
  return CHECKED_TABLES.flatMap((table) => {
    const here = new Map(shown[table].map((row) => [row.id, row]))
    const there = new Set(truth[table].map(({ id }) => id))
    const losses: Loss[] = []
    for (const row of truth[table]) {
      const own = here.get(row.id)
      const what = own ? difference(row, own) : 'missing'
      if (what) losses.push({ table, id: row.id, what })
    }
    for (const { id } of shown[table]) if (!there.has(id)) losses.push({ table, id, what: 'deleted there, shown here' })
    return losses
  })
}

function difference(truth: SeenRow, shown: SeenRow): Loss['what'] | null {
  if ((shown.version ?? 0) < (truth.version ?? 0)) return 'older'
  // A newer version has come since Postgres was read.
  if ((shown.version ?? 0) > (truth.version ?? 0)) return null
  const isSame = COLUMNS.every((column) => truth[column] === undefined || truth[column] === shown[column])
  return isSame ? null : 'different'
}

/** The tags that this page wrote once and that more than one row has. */
export function findDoubled(truth: Rows, tags: ReadonlySet<string>): string[] {
  const counts = new Map<string, number>()
  for (const { title, content } of [...truth.tasks, ...truth.messages])
    for (const tag of tagsOf(title ?? content ?? '')) counts.set(tag, (counts.get(tag) ?? 0) + 1)
  return [...counts].filter(([tag, count]) => count > 1 && tags.has(tag)).map(([tag]) => tag)
}

/** How many rows have each of these tags. */
export function countTagged(truth: Rows, tags: Iterable<string>): number[] {
  const all = [...truth.tasks, ...truth.messages].flatMap(({ title, content }) => tagsOf(title ?? content ?? ''))
  return [...tags].map((tag) => all.filter((other) => other === tag).length)
}

export type Sighting = { readonly table: string; readonly id: string }

/** Follows the versions that one pane shows. */
export class Order {
  /** Versions that were lower than one that the pane has shown of the same row. */
  backwards = 0
  readonly #highest = new Map<string, number>()
  readonly #shown = new Map<string, Map<string, number>>()

  /** Returns the rows whose version is new here, and those that have gone. */
  observe(table: string, rows: readonly SeenRow[]): Sighting[] {
    const before = this.#shown.get(table)
    const now = new Map(rows.map((row) => [row.id, row.revision ?? row.version ?? 0]))
    this.#shown.set(table, now)
    const sightings: Sighting[] = []
    for (const [id, version] of now) {
      const name = `${table} ${id}`
      const highest = this.#highest.get(name) ?? -1
      // A row without a version was written here, and has not come back yet.
      if (version > 0 && version < highest) this.backwards += 1
      if (version > highest) this.#highest.set(name, version)
      if (before?.get(id) !== version && version > 0) sightings.push({ table, id })
    }
    for (const id of before?.keys() ?? []) if (!now.has(id)) sightings.push({ table, id })
    // What the storage held at the start was not seen arriving.
    return before ? sightings : []
  }
}
