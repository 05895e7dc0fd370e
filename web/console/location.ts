import { Store } from '../api/store'

/** Where the console is: the screen and its filters, all of it in the fragment of the address. */
export type Place = { path: string; params: Record<string, string> }

export function parsePlace(hash: string): Place {
  const [path = '', query = ''] = hash.replace(/^#\/?/, '').split('?', 2)
  return { path, params: Object.fromEntries(new URLSearchParams(query)) }
}

/** The address of a place. Parameters without a value are left out. */
export function href(path: string, params: Record<string, string | null | undefined> = {}): string {
  const query = new URLSearchParams()
  for (const [name, value] of Object.entries(params)) if (value) query.set(name, value)
  const text = query.toString()
  return `#/${path}${text ? `?${text}` : ''}`
}

export const place = new Store<Place>({ path: '', params: {} })

export function followLocation(): void {
  const read = (): void => place.set(parsePlace(location.hash))
  addEventListener('hashchange', read)
  read()
}

/** Changes filters of this screen without a new entry in the history. */
export function setParams(params: Record<string, string | null>): void {
  const { path, params: before } = place.value
  history.replaceState(null, '', href(path, { ...before, ...params }))
  place.set(parsePlace(location.hash))
}
