import { figures } from '../../api/figures'
import type { Ring } from '../../api/ring'
import type { Figures, Level } from '../../api/types'
import { Chart } from '../../parts/chart'
import { Command } from '../../parts/command'
import { Ago } from '../../parts/duration'
import { Facts } from '../../parts/facts'
import { bytes, count, decimal, duration, milliseconds, number, rate } from '../../parts/format'
import { useStore } from '../../parts/hooks'
import { State } from '../../parts/level'
import { Meter } from '../../parts/meter'
import { Stale } from '../../parts/stale'
import { href } from '../location'
import { Pipeline } from './pipeline'
import { UploadsChart } from './uploads-chart'

/** How old a latency may be that is shown as that of now. */
const RECENT_SECONDS = 10

/** What must work for fresh data, as `/ready` names it. */
const LANES = ['postgres', 'redis', 'replication', 'freshness']

export function Now() {
  const { latest, receivedAt, restarts } = useStore(figures.state)
  if (!latest) return <p class="empty">No figures yet.</p>
  return (
    <Stale at={receivedAt}>
      <Problems latest={latest} />
      <Freshness latest={latest} ring={figures.ring} restarts={restarts} />
      <Pipeline latest={latest} ring={figures.ring} />
      <Charts ring={figures.ring} restarts={restarts} />
      <Rest latest={latest} ring={figures.ring} />
    </Stale>
  )
}

function Problems({ latest }: { latest: Figures }) {
  const others = latest.problems.filter((problem) => problem.sentence !== latest.verdict.sentence)
  if (others.length === 0) return null
  return (
    <ul class="problems" aria-label="Other problems">
      {others.map((problem) => (
        <li key={problem.name}>
          <State level={problem.level}>{problem.sentence}</State>
          {problem.command && <Command text={problem.command} />}
          {problem.screen && <a href={href(problem.screen)}>Show</a>}
        </li>
      ))}
    </ul>
  )
}

type Part = { latest: Figures; ring: Ring; restarts: number[] }

function Freshness({ latest, ring, restarts }: Part) {
  const age = ring.last('age_seconds')
  const bound = latest.bound_seconds
  const isOver = age !== null && age > bound
  return (
    <section class="panel hero">
      <div class="hero-figure">
        <h2>Age of what clients see</h2>
        <p class={`figure huge ${isOver ? 'fail' : ''}`}>{age === null ? '–' : duration(age)}</p>
        <p class="sub">{isOver ? `over the bound of ${duration(bound)}` : `bound ${duration(bound)}`}</p>
      </div>
      <Chart
        label={`Age of what clients see in the last ${duration(ring.span)}, now ${duration(age)}, bound ${duration(bound)}`}
        times={times(ring)}
        seconds={ring.span}
        series={[{ label: 'age', values: ring.column('age_seconds'), tone: 'accent', kind: 'area' }]}
        bound={{ value: bound, label: `bound ${duration(bound)}` }}
        marks={restarts}
        format={duration}
        height={128}
      />
    </section>
  )
}

function Charts({ ring, restarts }: Omit<Part, 'latest'>) {
  const shared = { times: times(ring), seconds: ring.span, marks: restarts }
  const p50 = ring.recent('commit_to_stream_p50_ms', RECENT_SECONDS)
  const p99 = ring.recent('commit_to_stream_p99_ms', RECENT_SECONDS)
  return (
    <div class="grid two">
      <section class="panel">
        <h2>Commit to stream</h2>
        <p class="figure">
          {milliseconds(p50)} <small>p50</small> {milliseconds(p99)} <small>p99</small>
        </p>
        <Chart
          {...shared}
          label={`Time from commit to stream, now p50 ${milliseconds(p50)}, p99 ${milliseconds(p99)}`}
          series={[
            { label: 'p50', values: ring.column('commit_to_stream_p50_ms'), tone: 'accent' },
            { label: 'p99', values: ring.column('commit_to_stream_p99_ms'), tone: 'text', dash: true },
          ]}
          format={milliseconds}
        />
      </section>
      <section class="panel">
        <h2>Rows published</h2>
        <p class="figure">
          {decimal(ring.last('rows_per_second'))} <small>per second</small>
        </p>
        <Chart
          {...shared}
          label={`Rows published each second, now ${decimal(ring.last('rows_per_second'))}`}
          series={[{ label: 'rows/s', values: ring.column('rows_per_second'), tone: 'accent', kind: 'area' }]}
          format={decimal}
        />
      </section>
      <UploadsChart ring={ring} />
      <section class="panel">
        <h2>Streams open</h2>
        <p class="figure">
          {number(ring.last('streams_open'))} <small>open</small> {decimal(ring.last('requests_per_second'))}{' '}
          <small>requests/s</small>
        </p>
        <Chart
          {...shared}
          label={`Event streams of clients, now ${number(ring.last('streams_open'))}, and requests each second`}
          series={[
            { label: 'streams', values: ring.column('streams_open'), tone: 'accent' },
            { label: 'requests/s', values: ring.column('requests_per_second'), tone: 'text', dash: true },
          ]}
          format={decimal}
        />
      </section>
    </div>
  )
}

function Rest({ latest, ring }: { latest: Figures; ring: Ring }) {
  const { redis, devices, tenants, epoch, replication } = latest
  const ours = latest.slots?.find((slot) => slot.ours)
  return (
    <div class="grid three">
      <section class="panel">
        <h2>Replication</h2>
        <Facts
          facts={[
            ['State', <State level={replicationLevel(replication.state)}>{replication.state}</State>],
            ['Replicates', replicatorText(replication)],
            ['Since', <Ago at={replication.since} />],
            ['Epoch', epoch ? number(epoch.number) : null],
            ['Epoch seen', <Ago at={epoch?.since} />],
            ['Problem', replication.problem ?? 'none'],
          ]}
        />
      </section>
      <section class="panel">
        <h2>Clients</h2>
        <Facts
          facts={[
            ['Devices online', number(devices?.online)],
            ['Seen in 24 h', number(devices?.seen_24h)],
            ['Enrolled', number(devices?.enrolled)],
            ['Tenants', tenants ? tenantsText(tenants) : null],
          ]}
        />
      </section>
      <section class="panel">
        <h2>Storage</h2>
        <Facts
          facts={[
            ['WAL retained', bytes(ring.last('retained_bytes'))],
            ['WAL written', rate(ours?.wal_bytes_per_second)],
            ['WAL status', ours?.wal_status],
            ['Redis memory', redis ? <RedisMemory redis={redis} /> : null],
          ]}
        />
      </section>
      <section class="panel wide">
        <h2>Checks</h2>
        <ul class="checks">
          {LANES.map((name) => {
            const problem = latest.problems.find((one) => one.name === name)
            return (
              <li key={name}>
                <State level={problem?.level ?? 'ok'}>{name}</State>
                <span class="sub">{problem ? 'see above' : 'ok'}</span>
              </li>
            )
          })}
        </ul>
      </section>
    </div>
  )
}

function RedisMemory({ redis }: { redis: NonNullable<Figures['redis']> }) {
  const { used_memory_bytes: used, maxmemory_bytes: max } = redis
  if (!max) return <>{bytes(used)}, no limit</>
  return (
    <>
      {bytes(used)} of {bytes(max)}
      <Meter value={used} max={max} label="Redis memory" level={used > max * 0.9 ? 'warn' : 'ok'} />
    </>
  )
}

function replicationLevel(state: string): Level | 'none' {
  if (state === 'absent') return 'none'
  return state === 'streaming' || state === 'waiting' ? 'ok' : state === 'starting' ? 'warn' : 'fail'
}

function tenantsText(tenants: NonNullable<Figures['tenants']>): string {
  const parts = [number(tenants.total)]
  if (tenants.paused > 0) parts.push(`${number(tenants.paused)} paused`)
  if (tenants.quarantined > 0) parts.push(`${count(tenants.quarantined, 'has', 'have')} a quarantine`)
  return parts.join(', ')
}

function replicatorText({ state, here }: Figures['replication']): string {
  if (!here) return 'another process'
  return state === 'waiting' ? 'another engine, this one waits' : 'this engine'
}

function times(ring: Ring): number[] {
  return ring.column('at').map((at) => at ?? 0)
}
