const FIRST_MS = 1000
const MOST_MS = 60_000

/** A longer delay is no request of this server: an app that comes back must not wait for days. */
const LEAST_MS_MAX = 3_600_000

/**
 * The delay before a repeat: 1 s to 1 min, at least what the server asks for, and up to as much again, so that clients
 * that lost the server together do not return together. Without a failure it is what the server asks for.
 */
export function backoff(failures: number, least: number | null, random: number): number {
  const grown = failures === 0 ? 0 : Math.min(FIRST_MS * 2 ** (failures - 1), MOST_MS)
  return Math.max(grown, Math.min(least ?? 0, LEAST_MS_MAX)) * (1 + random)
}
