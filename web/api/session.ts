import { ApiError, request, session, url } from './client'
import type { Session } from './types'

const LINK = /^#link=([\w.~%-]+)$/

/** The one-time code in a fragment such as `#link=abc`. */
export function linkOf(hash: string): string | null {
  const code = LINK.exec(hash)?.[1]
  return code === undefined ? null : decodeURIComponent(code)
}

/** Exchanges the link, if the address has one, or reads the session of the cookie. Returns why there is none. */
export async function begin(): Promise<string | null> {
  const link = linkOf(location.hash)
  // The code must stay neither in the address nor in the history.
  if (link !== null) history.replaceState(null, '', location.pathname)
  try {
    session.set(link === null ? await read() : await exchange({ link }))
    return null
  } catch (error) {
    session.set(null)
    if (!(error instanceof ApiError)) throw error
    return error.status === 401 && link === null ? null : error.message
  }
}

/** Reads the session again: after the stream of figures ended, it may be gone. */
export async function read(): Promise<Session> {
  return request<Session>(url(['session']))
}

export async function signInWithToken(token: string): Promise<void> {
  session.set(await exchange({ token }))
}

export async function signOut(): Promise<void> {
  try {
    await request(url(['session']), { method: 'DELETE' })
  } finally {
    session.set(null)
  }
}

async function exchange(body: { link: string } | { token: string }): Promise<Session> {
  await request<Session>(url(['session']), { method: 'POST', body })
  try {
    return await read()
  } catch (error) {
    if (!(error instanceof ApiError && error.status === 401)) throw error
    throw new ApiError(
      'LOCAL_COOKIE_REFUSED',
      'The browser refused the cookie of the session: over plain HTTP it keeps one for localhost only. ' +
        'Open the console by localhost, or through an SSH tunnel.',
      401,
    )
  }
}
