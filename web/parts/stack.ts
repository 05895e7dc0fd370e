/** The bars of later series stand on those of earlier ones. */
export function stack(series: (number | null)[][]): (number | null)[][] {
  const sums: number[] = []
  return series.map((values) =>
    values.map((value, index) => {
      if (value === null) return sums[index] === undefined ? null : sums[index]
      sums[index] = (sums[index] ?? 0) + value
      return sums[index]
    }),
  )
}
