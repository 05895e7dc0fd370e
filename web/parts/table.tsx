import type { ComponentChildren } from 'preact'

export type ColumnOf<T> = {
  key: string
  head: string
  cell: (row: T) => ComponentChildren
  /** Numbers stand at the end of their cell. */
  end?: boolean
  /** What to sort by; without it the column has no button. */
  sort?: (row: T) => number | string | null
  /** Texts that may break. */
  wrap?: boolean
  /** Names, of which long ones break. */
  name?: boolean
}

type Props<T> = {
  label: string
  columns: ColumnOf<T>[]
  rows: readonly T[]
  rowKey: (row: T) => string
  empty: string
  /** `name`, or `-name` for the other direction. */
  order?: string | undefined
  onOrder?: (order: string) => void
  selected?: string | null
}

/** Sorted copies; rows without a value come last in both directions. */
export function sorted<T>(rows: readonly T[], columns: ColumnOf<T>[], order: string | undefined): readonly T[] {
  const descending = order?.startsWith('-') ?? false
  const sort = columns.find((column) => column.key === (descending ? order?.slice(1) : order))?.sort
  if (!sort) return rows
  return [...rows].sort((a, b) => {
    const [left, right] = [sort(a), sort(b)]
    if (left === null || right === null) return left === right ? 0 : left === null ? 1 : -1
    const order =
      typeof left === 'number' && typeof right === 'number' ? left - right : String(left).localeCompare(String(right))
    return descending ? -order : order
  })
}

/** On narrow screens each row becomes a card; the roles keep it a table for those who do not see it. */
export function Table<T>(props: Props<T>) {
  const { label, columns, rows, rowKey, empty, order, onOrder, selected } = props
  if (rows.length === 0) return <p class="empty">{empty}</p>
  return (
    <div class="scroll" role="region" aria-label={label} tabIndex={0}>
      <table class="stacks" role="table">
        <thead role="rowgroup">
          <tr role="row">
            {columns.map((column) => (
              <Head key={column.key} column={column} order={order} onOrder={onOrder} />
            ))}
          </tr>
        </thead>
        <tbody role="rowgroup">
          {sorted(rows, columns, order).map((row) => (
            <tr key={rowKey(row)} role="row" class={selected === rowKey(row) ? 'selected' : undefined}>
              {columns.map((column, index) =>
                index === 0 ? (
                  <th key={column.key} role="rowheader" scope="row" class={column.name ? 'breaks' : undefined}>
                    {column.cell(row)}
                  </th>
                ) : (
                  <td
                    key={column.key}
                    role="cell"
                    data-head={column.head}
                    class={`${column.end ? 'end' : ''} ${column.wrap ? 'wrap' : ''} ${column.name ? 'breaks' : ''}`}
                  >
                    <div>{column.cell(row)}</div>
                  </td>
                ),
              )}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  )
}

function Head<T>(props: {
  column: ColumnOf<T>
  order: string | undefined
  onOrder: ((order: string) => void) | undefined
}) {
  const { column, order, onOrder } = props
  const isUp = order === column.key
  const isDown = order === `-${column.key}`
  const direction = isUp ? 'ascending' : isDown ? 'descending' : undefined
  return (
    <th role="columnheader" scope="col" class={column.end ? 'end' : undefined} aria-sort={direction}>
      {column.sort && onOrder ? (
        <button type="button" class="sort" onClick={() => onOrder(isDown ? column.key : `-${column.key}`)}>
          {column.head}
          <span aria-hidden="true">{isUp ? ' ↑' : isDown ? ' ↓' : ''}</span>
        </button>
      ) : (
        column.head
      )}
    </th>
  )
}
