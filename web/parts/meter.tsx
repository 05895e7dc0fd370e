import type { Level } from '../api/types'

/** A value against its bound as a bar. The text beside it says the same. */
export function Meter(props: { value: number; max: number; label: string; level?: Level }) {
  const { value, max, label, level = 'ok' } = props
  const share = max > 0 ? Math.min(1, Math.max(0, value / max)) : 0
  return (
    <span
      class={`meter ${level}`}
      role="meter"
      aria-label={label}
      aria-valuemin={0}
      aria-valuemax={max}
      aria-valuenow={Math.min(value, max)}
    >
      <span style={{ width: `${(share * 100).toFixed(1)}%` }} />
    </span>
  )
}
