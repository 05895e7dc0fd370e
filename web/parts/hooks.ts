import { useEffect, useRef, useState } from 'preact/hooks'
import { ApiError, messageOf, request } from '../api/client'
import { clock } from '../api/clock'
import { Store } from '../api/store'

export function useStore<T>(store: Store<T>): T {
  const [, draw] = useState(0)
  const value = store.value
  useEffect(() => {
    const changed = (): void => draw((count) => count + 1)
    // The value may have changed between the draw and this effect.
    if (!Object.is(value, store.value)) changed()
    return store.subscribe(changed)
  }, [store])
  return value
}

const TICK_MS = 500

/** A clock for ages: draws again twice a second, with one timer for the page. */
const ticks = new Store(clock.now())
let users = 0
let cancelTick: () => void = () => {}

function tick(): void {
  ticks.set(clock.now())
  cancelTick = clock.schedule(tick, TICK_MS)
}

export function useNow(): number {
  useEffect(() => {
    users += 1
    if (users === 1) cancelTick = clock.schedule(tick, TICK_MS)
    return () => {
      users -= 1
      if (users === 0) cancelTick()
    }
  }, [])
  useStore(ticks)
  return clock.now()
}

export type Resource<T> = {
  data: T | null
  /** When the data came, by the clock that never goes back. */
  at: number | null
  error: string | null
  /** The code of the error. */
  code: string | null
  loading: boolean
  reload: () => void
  /** How often it is read. */
  everyMs: number | null
}

type Loaded<T> = { path: string; data: T | null; at: number | null; error: string | null; code: string | null }

/**
 * Reads a path, and again after each interval while the page is visible. The data of another path is never shown.
 * `null` reads nothing.
 */
export function useResource<T>(path: string | null, everyMs: number | null, timeoutMs = 15_000): Resource<T> {
  const [loaded, setLoaded] = useState<Loaded<T> | null>(null)
  const [loading, setLoading] = useState(false)
  const [round, setRound] = useState(0)
  const isMounted = useRef(true)
  useEffect(() => {
    isMounted.current = true
    return () => {
      isMounted.current = false
    }
  }, [])
  useEffect(() => {
    if (path === null) return
    const controller = new AbortController()
    let cancel = (): void => {}
    const repeat = (): void => {
      if (everyMs === null) return
      cancel = clock.schedule(() => {
        const { signal } = controller
        if (document.hidden) document.addEventListener('visibilitychange', run, { once: true, signal })
        else run()
      }, everyMs)
    }
    const run = (): void => {
      setLoading(true)
      request<T>(path, { signal: controller.signal, timeoutMs })
        .then(
          (data) => setLoaded({ path, data, at: clock.now(), error: null, code: null }),
          (error: unknown) => {
            if (controller.signal.aborted) return
            const code = error instanceof ApiError ? error.code : null
            setLoaded((before) => ({
              path,
              data: before?.path === path ? before.data : null,
              at: before?.path === path ? before.at : null,
              error: messageOf(error),
              code,
            }))
          },
        )
        .finally(() => {
          if (controller.signal.aborted) return
          if (isMounted.current) setLoading(false)
          repeat()
        })
    }
    run()
    return () => {
      cancel()
      controller.abort()
    }
  }, [path, everyMs, timeoutMs, round])
  const current = loaded?.path === path ? loaded : null
  return {
    data: current?.data ?? null,
    at: current?.at ?? null,
    error: current?.error ?? null,
    code: current?.code ?? null,
    loading,
    reload: () => setRound((count) => count + 1),
    everyMs,
  }
}
