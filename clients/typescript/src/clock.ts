/** Time and random values: the only place that uses these globals, late, so that tests can replace them. */
export type Clock = {
  /** Milliseconds since 1970. */
  now(): number
  /** Calls `run` once after the delay; the result cancels it. */
  schedule(run: () => void, ms: number): () => void
  /** From 0 to below 1. */
  random(): number
  /** A version 7 UUID: ids grow with time, which keeps indexes small. */
  uuid(): string
}

/** Timers are limited to 31 bits; a longer one would fire at once. */
const DELAY_MAX = 2 ** 31 - 1

/** Throws where ids would not be random. */
export function systemClock(): Clock {
  if (!globalThis.crypto?.getRandomValues)
    throw new Error('there is no crypto.getRandomValues: import a polyfill, such as react-native-get-random-values')
  return clock
}

export const clock: Clock = {
  now: () => Date.now(),
  schedule: (run, ms) => {
    const timer = setTimeout(run, Math.min(Math.max(ms, 0), DELAY_MAX))
    return () => clearTimeout(timer)
  },
  random: () => Math.random(),
  uuid: () => {
    const bytes = crypto.getRandomValues(new Uint8Array(16))
    const at = Date.now().toString(16).padStart(12, '0')
    const rest = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('')
    const variant = '89ab'[(bytes[8] ?? 0) & 3]
    return `${at.slice(0, 8)}-${at.slice(8)}-7${rest.slice(1, 4)}-${variant}${rest.slice(5, 8)}-${rest.slice(8, 20)}`
  },
}
