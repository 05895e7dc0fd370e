import { count, text } from '../json.js'
import type { Draft } from './draft.js'
import { endToken, REVOKED } from './enrollment.js'
import type { Event } from './event.js'
import type { Failure } from './state.js'

/** A reconnection that the server announces without a delay waits this long. */
const RECONNECT_MS = 1000

export function handleLiveEvent(draft: Draft, { name, id, data }: Event & { type: 'liveEvent' }): void {
  switch (name) {
    case 'hello':
      return
    case 'presence':
      return draft.notify({ name: 'presence', data })
    case 'bye':
      draft.does({ type: 'closeLive' })
      draft.live({ status: 'waiting', isServerDelay: true })
      draft.does({ type: 'wait', lane: 'live', failures: 0, least: count(data['reconnect_ms']) ?? RECONNECT_MS })
      return
    case 'revoked':
      return endToken(draft, REVOKED, text(data['message']) ?? 'this device was revoked: enroll it again')
    default:
      if (name === 'device_added') draft.notify({ name: 'deviceAdded', data })
      // Events signal a change; the rows come by sync, one for all events so far.
      if (id !== null) draft.live({ seen: id })
      draft.lane('down', { wanted: true })
  }
}

export function handleLiveFailure(draft: Draft, failure: Failure): void {
  if (failure.kind === 'ended') return endToken(draft, failure.code, failure.message)
  if (failure.kind === 'refused' && failure.code === 'INVALID_CURSOR' && draft.state.device.lastEventId !== null) {
    draft.device({ lastEventId: null })
    draft.live({ status: 'closed', seen: null, covered: null })
    return
  }
  const failures = draft.state.live.failures + 1
  const least = failure.kind === 'later' ? failure.retryAfter : null
  draft.live({ status: 'waiting', failures, error: failure, isServerDelay: least !== null })
  draft.does({ type: 'wait', lane: 'live', failures, least })
}

export function wantLive(draft: Draft, wanted: boolean): void {
  draft.live({ wanted })
  if (!wanted) draft.closeLive()
}
