import type { Ring } from '../../api/ring'
import { Chart, type Series } from '../../parts/chart'
import { duration, number } from '../../parts/format'

/** What became of uploaded changes, with the colour of its bar. */
const RESULTS = [
  { label: 'applied', column: 'uploads_applied', tone: 'accent' },
  { label: 'duplicate', column: 'uploads_duplicate', tone: 'muted' },
  { label: 'conflict', column: 'uploads_conflict', tone: 'warn' },
  { label: 'rejected', column: 'uploads_rejected', tone: 'fail' },
] as const

/** Bars of a chart. */
const BARS = 15

export function UploadsChart({ ring, height = 120 }: { ring: Ring; height?: number }) {
  const { span } = ring
  const barSeconds = span / BARS
  const bars = RESULTS.map((result) => ring.sums(result.column, barSeconds))
  const totals = bars.map(({ sums }) => sums.reduce<number>((sum, value) => sum + (value ?? 0), 0))
  const series: Series[] = RESULTS.map(({ label, tone }, index) => ({
    label,
    tone,
    kind: 'bar',
    values: bars[index]?.sums ?? [],
  }))
  return (
    <section class="panel">
      <h2>Uploads of {duration(span)} by result</h2>
      <p class="figure">
        {RESULTS.map(({ label }, index) => (
          <span key={label} class="together">
            {number(totals[index])} <small>{label}</small>{' '}
          </span>
        ))}
      </p>
      <Chart
        label={`Uploads of ${duration(span)}: ${RESULTS.map(({ label }, index) => `${totals[index]} ${label}`).join(', ')}`}
        times={bars[0]?.at ?? []}
        seconds={span}
        series={series}
        stacked
        barSeconds={barSeconds}
        format={number}
        height={height}
      />
    </section>
  )
}
