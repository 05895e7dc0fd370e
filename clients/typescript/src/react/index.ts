import { useCallback, useEffect, useRef, useState, useSyncExternalStore } from 'react'
import type { ClientBase } from '../types.js'
import type { ServerResult, Write } from '../outbox/writes.js'
import type { Presence } from '../presence.js'
import { INITIAL_STATUS, type Status } from '../status.js'
import type { Query, QuerySnapshot } from '../tables/query.js'

const LOADING: QuerySnapshot<never> = { rows: [], phase: 'loading', error: null }

const NO_USERS: Presence = new Map()

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
  return useSyncExternalStore(client.presence.subscribe, client.presence.getSnapshot, () => NO_USERS)
}

/** The last change that a component has made. */
export type WriteState = {
  /** `local`: it waits in the outbox, and queries show it. */
  readonly state: 'none' | 'storing' | 'local' | 'done' | 'failed'
  /** Of the server, or of the storage if it could not be stored. */
  readonly result: Pick<ServerResult, 'status' | 'code' | 'message' | 'server'> | null
}

const NO_WRITE: WriteState = { state: 'none', result: null }

/** Calls a function that writes, and follows its last change: `const [add, last] = useWrite((title) => client.tasks.create({ title }))`. */
export function useWrite<Arguments extends unknown[]>(
  make: (...values: Arguments) => Write,
): [(...values: Arguments) => Write, WriteState] {
  const [state, setState] = useState(NO_WRITE)
  const latest = useRef<string | null>(null)
  const maker = useRef(make)
  useEffect(() => {
    maker.current = make
  })
  useEffect(() => () => void (latest.current = null), [])
  const start = useCallback((...values: Arguments): Write => {
    const write = maker.current(...values)
    latest.current = write.key
    // An earlier change, or an unmounted component, is no longer shown.
    const show = (next: WriteState) => {
      if (latest.current === write.key) setState(next)
    }
    show({ state: 'storing', result: null })
    void write.local.then((local) => local.ok && show({ state: 'local', result: null }))
    void write.server.then((result) => {
      const isFailed = result.status === 'rejected' || result.status === 'unknown' || result.winner === 'theirs'
      show({ state: isFailed ? 'failed' : 'done', result })
    })
    return write
  }, [])
  return [start, state]
}
