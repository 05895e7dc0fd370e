import type { Column, FiguresHistory, Row } from './types'

/** Seconds that the charts show at most. */
export const RING_SECONDS = 900

/** Seconds that the charts show, by how much history there is. */
const SPANS = [120, 300, RING_SECONDS]

/** A row that is nearer to the last one is left out: rates over so little time are noise. */
const LEAST_SECONDS = 0.5

/** A pause between two rows that is longer than this is drawn as a gap. */
const GAP_SECONDS = 2.5

/** The last 15 minutes of figures, oldest first. Times only grow. */
export class Ring {
  readonly capacity: number
  #columns: string[] = ['at']
  #rows: Row[] = []
  #version = 0

  constructor(capacity: number = RING_SECONDS) {
    this.capacity = capacity
  }

  /** Grows with every change, so that a chart can compare it. */
  get version(): number {
    return this.#version
  }

  get length(): number {
    return this.#rows.length
  }

  /** Takes the history of an engine. Rows of an earlier engine that are older stay. */
  merge(history: FiguresHistory): void {
    const order = history.columns.map((name) => this.#columns.indexOf(name))
    const isSame = order.length === this.#columns.length && order.every((at, index) => at === index)
    const first = history.rows[0]?.[0]
    const older =
      isSame && first != null ? this.#rows.filter((row) => row[0] != null && row[0] < first) : isSame ? this.#rows : []
    this.#columns = history.columns
    this.#rows = [...older]
    for (const row of history.rows) this.#append(row)
    this.#version += 1
  }

  push(row: Row): void {
    if (this.#append(row)) this.#version += 1
  }

  #append(row: Row): boolean {
    const at = row[0]
    const last = this.#rows.at(-1)?.[0]
    if (at == null || (last != null && at - last < LEAST_SECONDS)) return false
    if (last != null && at - last > GAP_SECONDS) this.#rows.push([last + 1, ...row.slice(1).map(() => null)])
    this.#rows.push(row)
    while (this.#rows.length > this.capacity) this.#rows.shift()
    return true
  }

  column(name: Column): (number | null)[] {
    const at = this.#columns.indexOf(name)
    return at < 0 ? this.#rows.map(() => null) : this.#rows.map((row) => row[at] ?? null)
  }

  last(name: Column): number | null {
    const at = this.#columns.indexOf(name)
    return at < 0 ? null : (this.#rows.at(-1)?.[at] ?? null)
  }

  /** The newest value of some seconds: a second in which nothing happened has no latency. */
  recent(name: Column, seconds: number): number | null {
    return this.column(name).slice(-seconds).findLast((value) => value !== null) ?? null
  }

  /** Seconds that charts show: the history of an engine that has just started is short. */
  get span(): number {
    const length = (this.last('at') ?? 0) - (this.#rows[0]?.[0] ?? 0)
    return SPANS.find((span) => length <= span) ?? RING_SECONDS
  }

  /** Sums of a column over so many seconds of the clock each, oldest first. */
  sums(name: Column, seconds: number): { at: number[]; sums: (number | null)[] } {
    const at: number[] = []
    const sums: (number | null)[] = []
    const values = this.column(name)
    this.#rows.forEach((row, index) => {
      const begin = Math.floor((row[0] ?? 0) / seconds) * seconds
      if (at.at(-1) !== begin) {
        at.push(begin)
        sums.push(null)
      }
      const value = values[index]
      if (value != null) sums[sums.length - 1] = (sums.at(-1) ?? 0) + value
    })
    return { at, sums }
  }
}

/** The last values of one name each, such as the retained WAL of every slot. */
export class Tails {
  readonly capacity: number
  readonly #values = new Map<string, number[]>()

  constructor(capacity: number = 120) {
    this.capacity = capacity
  }

  push(name: string, value: number): void {
    const values = this.#values.get(name) ?? []
    values.push(value)
    if (values.length > this.capacity) values.shift()
    this.#values.set(name, values)
  }

  /** Forgets names that no longer exist. */
  retain(names: Set<string>): void {
    for (const name of [...this.#values.keys()]) if (!names.has(name)) this.#values.delete(name)
  }

  of(name: string): readonly number[] {
    return this.#values.get(name) ?? []
  }
}
