import { useRef } from 'preact/hooks'
import { clock } from '../api/clock'
import { age, dateTime, dateTimeUtc, duration, instant } from './format'
import { useNow } from './hooks'

/** A time of the day, in the time zone of the reader; in UTC as its title. */
export function Time({ at }: { at: string | number | null | undefined }) {
  const ms = instant(at)
  if (ms === null) return <span class="none">–</span>
  return (
    <time dateTime={new Date(ms).toISOString()} title={dateTimeUtc(ms)}>
      {dateTime(ms, clock.wall())}
    </time>
  )
}

/** How long ago something was; counts up. */
export function Ago({ at, empty = '–' }: { at: string | number | null | undefined; empty?: string }) {
  useNow()
  const ms = instant(at)
  if (ms === null) return <span class="none">{empty}</span>
  return (
    <time dateTime={new Date(ms).toISOString()} title={dateTimeUtc(ms)}>
      {age((clock.wall() - ms) / 1000)} ago
    </time>
  )
}

/** A duration that counts down from the moment at which it was received. */
export function Countdown({ seconds }: { seconds: number }) {
  const now = useNow()
  const start = useRef({ seconds, now })
  if (start.current.seconds !== seconds) start.current = { seconds, now }
  return <>{duration(start.current.seconds - (now - start.current.now) / 1000)}</>
}
