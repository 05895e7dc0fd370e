import type { ComponentChildren } from 'preact'
import type { Resource } from './hooks'
import { Stale, STALE_MS } from './stale'

/** How late a reading may be. */
const LATE_MS = 1000

/** What a resource holds, with its error and its age. `live` greys it after 3 s, or when the next reading is late. */
export function Loaded<T>(props: {
  resource: Resource<T>
  live?: boolean
  children: (data: T) => ComponentChildren
}) {
  const { resource, live = true, children } = props
  const { data, error, at, everyMs } = resource
  return (
    <>
      {error !== null && (
        <p class="error" role="alert">
          {error}{' '}
          <button type="button" onClick={resource.reload}>
            Try again
          </button>
        </p>
      )}
      {data === null ? (
        error === null && <p class="empty">Reading…</p>
      ) : live ? (
        <Stale at={at} limitMs={Math.max(STALE_MS, (everyMs ?? 0) + LATE_MS)}>
          {children(data)}
        </Stale>
      ) : (
        children(data)
      )}
    </>
  )
}
