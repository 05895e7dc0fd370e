const FIRST_MS = 1000
const MOST_MS = 60_000

/**
 * The delay before a repeat: 1 s to 1 min, at least what the server asks for, and up to as much again, so that clients
 * that lost the server together do not return together.
 */
export function backoff(failures: number, least: number | null, random: number): number {
  const grown = Math.min(FIRST_MS * 2 ** Math.max(failures - 1, 0), MOST_MS)
  return Math.max(grown, least ?? 0) * (1 + random)
}
