import type { Clock } from '../clock.js'

/**
 * Returns the access token of a user, for adding this device to the account. `start`: there is no token yet. `refused`: the
 * server has refused the last one, and the same one is not sent again. Null: the user is signed out. Throw to be called again
 * later. After a revocation it is called when the app calls `sync`.
 */
export type CredentialsCallback = (request: {
  readonly reason: 'start' | 'expiring' | 'refused'
  readonly signal: AbortSignal
}) => Promise<{ readonly token: string } | null>

/** An app that shows a login form returns null, and calls `sync` or `login` after it. */
const TIMEOUT_MS = 60_000

type Outcome = { readonly ok: true; readonly token: string | null } | { readonly ok: false; readonly message: string }

/** Calls the app. Settles in any case. */
export async function requestToken(
  callback: CredentialsCallback | undefined,
  reason: 'start' | 'refused',
  clock: Clock,
  abort: AbortSignal,
): Promise<Outcome> {
  if (!callback) return { ok: true, token: null }
  const control = new AbortController()
  const stop = () => control.abort()
  abort.addEventListener('abort', stop)
  const cancel = clock.schedule(stop, TIMEOUT_MS)
  const ended = new Promise<Outcome>((resolve) => {
    control.signal.addEventListener('abort', () => {
      resolve({ ok: false, message: `the credentials callback did not return within ${TIMEOUT_MS / 1000} s` })
    })
  })
  const called = async (): Promise<Outcome> => {
    try {
      const answer = await callback({ reason, signal: control.signal })
      if (answer === null || typeof answer.token === 'string') return { ok: true, token: answer?.token ?? null }
      return { ok: false, message: 'the credentials callback returned neither { token } nor null' }
    } catch (error) {
      return { ok: false, message: error instanceof Error ? error.message : 'the credentials callback failed' }
    }
  }
  const outcome = await Promise.race([called(), ended])
  cancel()
  abort.removeEventListener('abort', stop)
  return outcome
}
