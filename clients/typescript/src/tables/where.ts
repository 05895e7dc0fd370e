import type { Json, JsonObject } from '../json.js'

/** A comparison with a column. */
export type Comparison<T> = {
  readonly in?: readonly T[]
  readonly ne?: T
  readonly lt?: T
  readonly lte?: T
  readonly gt?: T
  readonly gte?: T
}

/** Columns with the value that they must have, or a comparison; or a function. */
export type Where<T> = { readonly [K in keyof T]?: T[K] | Comparison<T[K]> } | ((row: T) => boolean)

export type Direction = 'asc' | 'desc'

/** A column, one with its direction, or several of both. */
export type OrderBy<T> =
  (keyof T & string) | readonly [keyof T & string, Direction] | readonly (readonly [keyof T & string, Direction])[]

export function compileWhere<T>(where: Where<T> | undefined): (row: JsonObject) => boolean {
  if (where === undefined) return () => true
  if (typeof where === 'function') return where as unknown as (row: JsonObject) => boolean
  const tests = Object.entries(where).map(([column, wanted]) =>
    compileColumn(column, wanted as Json | Comparison<Json>),
  )
  return (row) => tests.every((test) => test(row))
}

function compileColumn(column: string, wanted: Json | Comparison<Json>): (row: JsonObject) => boolean {
  if (typeof wanted !== 'object' || wanted === null) return (row) => (row[column] ?? null) === wanted
  const { in: list, ne, lt, lte, gt, gte } = wanted as Comparison<Json>
  // As in SQL, null is neither less nor greater than anything.
  const compare = (limit: Json | undefined, holds: (order: number) => boolean) => (value: Json) =>
    limit === undefined || (value !== null && holds(compareValues(value, limit)))
  const tests = [
    (value: Json) => list === undefined || list.includes(value),
    (value: Json) => ne === undefined || value !== ne,
    compare(lt, (order) => order < 0),
    compare(lte, (order) => order <= 0),
    compare(gt, (order) => order > 0),
    compare(gte, (order) => order >= 0),
  ]
  return (row) => tests.every((test) => test(row[column] ?? null))
}

/** The order of rows; rows that are equal in it are ordered by id. Nulls come last in either direction. */
export function compileOrder<T>(orderBy: OrderBy<T> | undefined): (one: JsonObject, other: JsonObject) => number {
  const columns = normalize(orderBy as string | readonly unknown[] | undefined)
  return (one, other) => {
    for (const [column, direction] of columns) {
      const [a, b] = [one[column] ?? null, other[column] ?? null]
      if (a === b) continue
      if (a === null) return 1
      if (b === null) return -1
      const order = compareValues(a, b)
      if (order !== 0) return direction === 'desc' ? -order : order
    }
    return compareValues(one['id'] ?? '', other['id'] ?? '')
  }
}

function normalize(orderBy: string | readonly unknown[] | undefined): (readonly [string, Direction])[] {
  if (orderBy === undefined) return []
  if (typeof orderBy === 'string') return [[orderBy, 'asc']]
  if (typeof orderBy[0] === 'string') return [orderBy as unknown as readonly [string, Direction]]
  return orderBy as (readonly [string, Direction])[]
}

/** Values of one type by their order, texts by their code units; of different types by the name of the type. */
function compareValues(one: Json, other: Json): number {
  if (typeof one !== typeof other) return typeof one < typeof other ? -1 : 1
  return one === other || one === null || other === null ? 0 : one < other ? -1 : one > other ? 1 : 0
}
