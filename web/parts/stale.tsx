import type { ComponentChildren } from 'preact'
import { useNow } from './hooks'
import { age } from './format'

/** A value that is older than this is greyed. */
export const STALE_MS = 3000

export function isStale(receivedAt: number | null, now: number, limitMs: number = STALE_MS): boolean {
  return receivedAt === null || now - receivedAt > limitMs
}

type Props = {
  at: number | null
  /** The age from which values are old. */
  limitMs?: number
  children: ComponentChildren
}

/** Greys what it contains when the values are old, and says how old they are. */
export function Stale({ at, limitMs = STALE_MS, children }: Props) {
  const now = useNow()
  const stale = at !== null && isStale(at, now, limitMs)
  return (
    <div class="fresh" data-stale={stale ? 'true' : undefined}>
      {stale && <p class="stale-note">Figures of {age((now - at) / 1000)} ago</p>}
      {children}
    </div>
  )
}
