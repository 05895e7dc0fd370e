const WIDTH = 96
const HEIGHT = 20

/** Points of a line from left to right; the scale begins at zero. Values that are missing split the line. */
export function sparklinePath(values: readonly (number | null)[], width = WIDTH, height = HEIGHT): string {
  const max = Math.max(0, ...values.map((value) => value ?? 0))
  const step = values.length > 1 ? width / (values.length - 1) : 0
  let path = ''
  let isOpen = false
  values.forEach((value, index) => {
    if (value === null) {
      isOpen = false
      return
    }
    const y = max > 0 ? height - 1 - (value / max) * (height - 2) : height - 1
    path += `${isOpen ? 'L' : 'M'}${(index * step).toFixed(1)} ${y.toFixed(1)}`
    isOpen = true
  })
  return path
}

/** A small line without axes; the label describes it. */
export function Sparkline({ values, label }: { values: readonly (number | null)[]; label: string }) {
  return (
    <svg class="sparkline" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label={label} preserveAspectRatio="none">
      <path d={`M0 ${HEIGHT - 0.5}H${WIDTH}`} class="floor" />
      <path d={sparklinePath(values)} class="line" />
    </svg>
  )
}
