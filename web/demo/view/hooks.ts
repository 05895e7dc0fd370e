import { useEffect, useState } from 'preact/hooks'
import type { Readable } from '../model/value'

/** Draws the component again when the value changes. */
export function useSnapshot<T>(source: Readable<T>): T {
  const [, draw] = useState(0)
  const value = source.getSnapshot()
  useEffect(() => {
    const changed = () => draw((count) => count + 1)
    // The value may have changed between the draw and this effect.
    if (!Object.is(value, source.getSnapshot())) changed()
    return source.subscribe(changed)
  }, [source])
  return value
}

/** The time in ms since 1970, once a second. */
export function useNow(): number {
  const [now, setNow] = useState(Date.now())
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), 1000)
    return () => clearInterval(timer)
  }, [])
  return now
}
