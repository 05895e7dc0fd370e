import type { Clock } from '../clock.js'

export type LifecycleHandlers = {
  /** The network or the page is back: sync. */
  readonly onHint: () => void
  /** The page goes into the cache, or ends. */
  readonly onSuspend: () => void
  readonly onResume: () => void
  /** The page is frozen, or on a phone was hidden for long. */
  readonly onHiddenLong: () => void
  readonly onVisible: () => void
}

const HIDDEN_MS = 60_000

/** Listens to the page; the result removes all listeners. Without a page nothing happens. */
export function watchPage(clock: Clock, handlers: LifecycleHandlers): () => void {
  if (typeof document === 'undefined' || typeof addEventListener === 'undefined') return () => {}
  const control = new AbortController()
  const { signal } = control
  let cancelHidden = () => {}
  const isMobile = typeof matchMedia === 'function' && matchMedia('(pointer: coarse)').matches
  addEventListener('online', () => handlers.onHint(), { signal })
  // A frozen page neither syncs nor answers the other tabs.
  document.addEventListener('freeze', () => handlers.onHiddenLong(), { signal })
  document.addEventListener(
    'resume',
    () => {
      handlers.onVisible()
      handlers.onHint()
    },
    { signal },
  )
  document.addEventListener(
    'visibilitychange',
    () => {
      cancelHidden()
      if (document.visibilityState === 'visible') {
        handlers.onVisible()
        handlers.onHint()
      } else if (isMobile) {
        cancelHidden = clock.schedule(() => handlers.onHiddenLong(), HIDDEN_MS)
      }
    },
    { signal },
  )
  addEventListener('pagehide', () => handlers.onSuspend(), { signal })
  addEventListener('pageshow', ({ persisted }) => persisted && handlers.onResume(), { signal })
  return () => {
    cancelHidden()
    control.abort()
  }
}

export function isVisible(): boolean {
  return typeof document === 'undefined' || document.visibilityState === 'visible'
}
