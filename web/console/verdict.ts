import type { FiguresState } from '../api/figures'
import type { Verdict } from '../api/types'
import { age } from '../parts/format'
import { isStale } from '../parts/stale'

/** How long a connection may be broken before it is shown: the first attempt to open it again takes less. */
const BROKEN_MS = 700

export type Shown = Verdict & {
  /** Whether the engine does not answer. */
  isLost: boolean
  /** How old the last figures are, if the engine does not answer. */
  since: string | null
}

/** The sentence above every screen: that of the engine, unless the engine does not answer. */
export function verdictAt(state: FiguresState, now: number): Shown | null {
  const { latest, receivedAt, link, linkSince } = state
  const brokenFor = link === 'broken' ? now - linkSince : 0
  const isLost = latest === null ? now - linkSince > 3000 : isStale(receivedAt, now) || brokenFor > BROKEN_MS
  if (isLost) {
    return {
      level: 'fail',
      sentence: 'The engine does not answer',
      command: 'posduif status',
      screen: null,
      isLost: true,
      since: receivedAt === null ? null : age((now - receivedAt) / 1000),
    }
  }
  return latest === null ? null : { ...latest.verdict, isLost: false, since: null }
}

/** The verdict as the title of the page, short enough for a tab. */
export function titleOf(verdict: Shown | null, screen: string): string {
  if (verdict === null) return `${screen} – Posduif`
  const mark = verdict.level === 'ok' ? '●' : verdict.level === 'warn' ? '▲' : '■'
  return `${mark} ${verdict.sentence} – ${screen} – Posduif`
}
