import type { Demo } from '../model/demo'
import { percentile } from '../model/journey'
import { ms } from '../model/story'
import { useNow, useSnapshot } from './hooks'

/** What the last comparison with Postgres has found. */
export function Counters({ demo }: { readonly demo: Demo }) {
  const check = useSnapshot(demo.checker.last)
  const hold = useSnapshot(demo.checker.hold)
  const samples = useSnapshot(demo.feed.samples)
  const backwards = useSnapshot(demo.screens.joe.backwards) + useSnapshot(demo.screens.bob.backwards)
  const now = useNow()
  const age = check ? Math.max(0, Math.round((now - check.at) / 1000)) : null
  return (
    <section class="counters" aria-label="Checked against Postgres">
      <dl>
        <Count name="lost" value={check?.losses.length ?? null} title="rows that a device lacks, or has older" />
        <Count name="doubled" value={check?.doubled.length ?? null} title="changes that Postgres has twice" />
        <Count
          name="out of order"
          value={check ? backwards : null}
          title="times that a device showed an older version after a newer one"
        />
        <Figure name="commit → screen, p50" value={ms(percentile(samples, 0.5))} />
        <Figure name="commit → screen, p99" value={ms(percentile(samples, 0.99))} />
      </dl>
      <p class="check-note">
        {check === null
          ? 'Not checked yet'
          : `Checked ${check.rows} rows and ${tags(check.tags)} of changes against Postgres, ${age} s ago`}
        {hold === null ? '.' : `. The next check waits: ${hold}.`}{' '}
        {samples.length > 0 && `Times of ${samples.length} arrivals on a connected device.`}
      </p>
    </section>
  )
}

function tags(count: number): string {
  return count === 1 ? '1 tag' : `${count} tags`
}

type CountProps = { readonly name: string; readonly value: number | null; readonly title: string }

function Count({ name, value, title }: CountProps) {
  const level = value === null ? 'unknown' : value === 0 ? 'good' : 'bad'
  return (
    <div class={`figure ${level}`} title={title}>
      <dt>{name}</dt>
      <dd>
        {value ?? '–'}
        {level === 'bad' && <span class="alarm"> ▲</span>}
      </dd>
    </div>
  )
}

function Figure({ name, value }: { readonly name: string; readonly value: string }) {
  return (
    <div class="figure">
      <dt>{name}</dt>
      <dd>{value}</dd>
    </div>
  )
}
