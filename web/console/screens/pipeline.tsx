import type { Ring } from '../../api/ring'
import type { Column, Figures } from '../../api/types'
import { bytes, duration, milliseconds, rate } from '../../parts/format'
import { Sparkline } from '../../parts/sparkline'

type Stage = {
  name: string
  meaning: string
  behind: number | null
  seconds: string | null
  values: (number | null)[]
}

/** Seconds of the small lines. */
const SHOWN = 120

/** From the end of the log to what Postgres may forget: how far each stage is behind, in bytes and in seconds. */
export function Pipeline({ latest, ring }: { latest: Figures; ring: Ring }) {
  const written = latest.slots?.find((slot) => slot.ours)?.wal_bytes_per_second ?? null
  const stages = stagesOf(latest, ring, written)
  return (
    <section class="panel">
      <h2>Pipeline</h2>
      <ol class="pipeline">
        <li>
          <h3>Postgres</h3>
          <p class="figure">{rate(written)}</p>
          <p class="sub">of WAL written</p>
        </li>
        {stages.map((stage) => (
          <li key={stage.name}>
            <h3>{stage.name}</h3>
            <p class="figure">{bytes(stage.behind)}</p>
            <p class="sub">
              {stage.seconds} {stage.meaning}
            </p>
            <Sparkline values={stage.values} label={`${stage.name}: bytes behind in the last 2 minutes`} />
          </li>
        ))}
      </ol>
    </section>
  )
}

function stagesOf(latest: Figures, ring: Ring, written: number | null): Stage[] {
  const ours = latest.slots?.find((slot) => slot.ours)
  const behind = (column: Column): { behind: number | null; values: (number | null)[] } => ({
    behind: ring.last(column),
    values: ring.column(column).slice(-SHOWN),
  })
  const about = (column: Column): string | null => secondsOf(ring.last(column), written)
  const p50 = ring.last('commit_to_stream_p50_ms')
  return [
    { name: 'received', meaning: 'behind', ...behind('received_bytes'), seconds: about('received_bytes') },
    {
      name: 'published',
      meaning: p50 === null ? 'behind' : 'from commit, p50',
      ...behind('published_bytes'),
      seconds: p50 === null ? about('published_bytes') : milliseconds(p50),
    },
    { name: 'durable', meaning: 'behind', ...behind('durable_bytes'), seconds: about('durable_bytes') },
    {
      name: 'confirmed',
      meaning: 'behind',
      ...behind('acknowledged_bytes'),
      seconds: ours?.lag_seconds == null ? about('acknowledged_bytes') : duration(ours.lag_seconds),
    },
  ]
}

/** What so many bytes are in time at the rate at which WAL is written now. */
export function secondsOf(behind: number | null, written: number | null): string | null {
  if (behind === null) return null
  if (behind === 0) return duration(0)
  if (written === null || written < 1) return null
  const seconds = behind / written
  return seconds < 0.05 ? '< 0.1 s' : `≈ ${duration(seconds)}`
}
