/** Time and random values: the only place that uses these globals, late, so that tests can replace them. */
export type Clock = {
  /** Milliseconds of a clock that never goes back. */
  now(): number
  /** Milliseconds since 1970. */
  wall(): number
  /** Calls `run` once after the delay; the result cancels it. */
  schedule(run: () => void, ms: number): () => void
  /** From 0 to below 1. */
  random(): number
}

export const clock: Clock = {
  now: () => performance.now(),
  wall: () => Date.now(),
  schedule: (run, ms) => {
    const timer = setTimeout(run, ms)
    return () => clearTimeout(timer)
  },
  random: () => Math.random(),
}

const DELAY_MIN_MS = 100
const DELAY_MAX_MS = 5000

/** A random delay before the attempt, whose range doubles with every failure. */
export function backoff(failures: number, random: number): number {
  const range = Math.min(DELAY_MAX_MS, 250 * 2 ** Math.min(failures, 10))
  return DELAY_MIN_MS + random * range
}
