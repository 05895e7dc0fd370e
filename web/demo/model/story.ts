import { lastRepeat, type Upload } from './faults'
import { published, type Journey } from './journey'

export type StepId = 'sql' | 'offline' | 'conflict' | 'lost' | 'kill' | 'revoke'

export const STEPS: readonly StepId[] = ['sql', 'offline', 'conflict', 'lost', 'kill', 'revoke']

/** What the page has observed. The steps of the story are judged by this alone. */
export type Facts = {
  readonly journeys: readonly Journey[]
  readonly joe: {
    readonly isOffline: boolean
    readonly isLive: boolean
    readonly access: string
    readonly waiting: number
    readonly conflicts: number
    /** When the phone went dark, in ms since 1970. */
    readonly endedAt: number | null
  }
  readonly bob: { readonly isLive: boolean; readonly waiting: number }
  /** A conflict was shown since the story began. */
  readonly hadConflict: boolean
  readonly resolution: 'mine' | 'server' | null
  readonly uploads: readonly Upload[]
  /** How many rows of Postgres have each tag of the upload whose answer was lost; null: not checked since. */
  readonly repeated: readonly number[] | null
  /** The last kill -9 that this page has caused. */
  readonly killedAt: number | null
  readonly engine: { readonly state: string; readonly at: number; readonly downMs: number | null }
  /** When both panes had their streams again, after the last kill. */
  readonly liveAgainMs: number | null
  readonly check: { readonly at: number; readonly losses: number; readonly doubled: number } | null
  /** When the request that revokes the phone was sent. */
  readonly revokedAt: number | null
}

/** The outcome of each step that the facts confirm, as a sentence. */
export function confirm(facts: Facts): Partial<Record<StepId, string>> {
  const found: Partial<Record<StepId, string>> = {}
  for (const step of STEPS) {
    const outcome = CONFIRM[step](facts)
    if (outcome !== null) found[step] = outcome
  }
  return found
}

const CONFIRM: Record<StepId, (facts: Facts) => string | null> = {
  sql: ({ journeys }) => {
    const journey = journeys.findLast(({ op, publishedMs, panes: { joe, bob } }) => {
      if (publishedMs === null) return false
      return op === 'insert' && !joe.isOwn && !bob.isOwn && joe.screen !== undefined && bob.screen !== undefined
    })
    if (!journey) return null
    const { joe, bob } = journey.panes
    return (
      `After the commit: in Redis ${published(journey, ms)}, ` +
      `on Joe’s screen ${ms(joe.screen)}, on Bob’s ${ms(bob.screen)}.`
    )
  },
  offline: ({ joe }) =>
    joe.isOffline && joe.waiting >= 3 ? `${joe.waiting} changes wait in the outbox of the phone.` : null,
  conflict: ({ hadConflict, resolution, joe }) => {
    if (!hadConflict || resolution === null || joe.conflicts > 0 || joe.waiting > 0 || joe.isOffline) return null
    return resolution === 'mine' ? 'Joe’s version was kept, on top of Bob’s.' : 'Bob’s version was kept.'
  },
  lost: ({ uploads, repeated }) => {
    const repeat = lastRepeat(uploads)
    if (!repeat || repeated === null || repeated.length === 0) return null
    if (repeated.some((count) => count !== 1)) return null
    const status = new Set(repeat.second).size === 1 ? repeat.second[0] : repeat.second.join(', ')
    const numbers = repeat.seqs.length === 1 ? 'number' : 'numbers'
    const rows = repeated.length === 1 ? '1 row' : `${repeated.length} rows`
    return (
      `Sent twice under the same ${numbers} (${range(repeat.seqs)}). ` +
      `The repeat got the first result again, “${status}”. In Postgres: still ${rows}.`
    )
  },
  kill: ({ killedAt, engine, liveAgainMs, check, joe, bob }) => {
    if (killedAt === null || engine.state !== 'up' || engine.at < killedAt || engine.downMs === null) return null
    if (liveAgainMs === null || joe.waiting > 0 || bob.waiting > 0) return null
    if (!check || check.at < killedAt + liveAgainMs || check.losses > 0 || check.doubled > 0) return null
    return `Engine back after ${seconds(engine.downMs)}, both devices after ${seconds(liveAgainMs)}. Nothing lost.`
  },
  revoke: ({ revokedAt, joe }) => {
    if (revokedAt === null || joe.endedAt === null || joe.endedAt < revokedAt) return null
    return joe.access === 'revoked' ? `The phone went dark ${ms(joe.endedAt - revokedAt)} after the request.` : null
  },
}

export function ms(value: number | null | undefined): string {
  if (value === null || value === undefined) return '–'
  return value < 10 ? `${value.toFixed(1)} ms` : value < 1000 ? `${Math.round(value)} ms` : seconds(value)
}

function seconds(value: number): string {
  return `${(value / 1000).toFixed(value < 10_000 ? 2 : 1)} s`
}

function range(numbers: readonly number[]): string {
  const [first, last] = [numbers[0], numbers.at(-1)]
  return first === last ? String(first) : `${first}–${last}`
}
