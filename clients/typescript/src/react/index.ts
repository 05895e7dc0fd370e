import { useSyncExternalStore } from 'react'
import type { ClientBase } from '../client.js'
import type { Presence } from '../presence.js'
import { INITIAL_STATUS, type Status } from '../status.js'
import type { Query, QuerySnapshot } from '../tables/query.js'

const LOADING: QuerySnapshot<never> = { rows: [], phase: 'loading', error: null }

const NOBODY: Presence = new Map()

/**
 * The rows of a query, live. Create the query outside of the component, or in `useState` or `useMemo`: each query object is a
 * subscription of its own.
 */
export function useQuery<T>(query: Query<T>): QuerySnapshot<T> {
  return useSyncExternalStore(query.subscribe, query.getSnapshot, () => LOADING)
}

export function useStatus(client: Pick<ClientBase, 'status'>): Status {
  return useSyncExternalStore(client.status.subscribe, client.status.getSnapshot, () => INITIAL_STATUS)
}

/** The users who are present; create the client with `presence: true`. */
export function usePresence(client: Pick<ClientBase, 'presence'>): Presence {
  return useSyncExternalStore(client.presence.subscribe, client.presence.getSnapshot, () => NOBODY)
}
