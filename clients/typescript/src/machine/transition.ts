import { storeBatch } from './batch.js'
import { Draft } from './draft.js'
import type { Step } from './effect.js'
import { beginEnrollment, endToken, refuseEnrollment, REVOKED, storeEnrollment } from './enrollment.js'
import type { Event } from './event.js'
import { handleLocal, hasUploads, isLocal, withdraw } from './local.js'
import { handleLiveEvent, handleLiveFailure, wantLive } from './live.js'
import { renumber } from './numbering.js'
import { proceed } from './requests.js'
import { inFlight, refuse, storeResults } from './results.js'
import { UPLOAD_ITEMS_MAX, type Failure, type State } from './state.js'

/** The whole client as a function: no clock, no network, no storage, no random values. `SPEC.md` has its rules. */
export function transition(state: State, event: Event): Step {
  const draft = new Draft(state, 'stored' in event ? event.stored : undefined)
  // The answer to a request that was abandoned.
  if ('ticket' in event && (event.ticket !== state.ticket || !state.busy)) return draft.step()
  if (isLocal(event)) handleLocal(draft, event)
  else handle(draft, event)
  proceed(draft)
  return draft.step()
}

function handle(draft: Draft, event: Exclude<Event, Parameters<typeof handleLocal>[1]>): void {
  const { busy, device } = draft.state
  switch (event.type) {
    case 'leads':
      return lead(draft, event)
    case 'sync':
      return want(draft, event.by)
    case 'enroll':
      return beginEnrollment(draft, event)
    case 'enrolled':
      draft.set({ busy: null })
      return storeEnrollment(draft, event)
    case 'credentials': {
      draft.set({ busy: null })
      const { token, freshId } = event
      if (token === null) {
        const message = 'the app has no credentials: sign in'
        draft.lane('auth', { wanted: false, failures: 0, error: { kind: 'ended', code: 'LOCAL_SIGNED_OUT', message } })
        draft.notify({ name: 'signedOut', code: 'LOCAL_SIGNED_OUT', message })
      } else if (token === draft.state.auth.refused) {
        const message = 'the credentials callback returned the token that the server has refused'
        pause(draft, 'auth', { kind: 'later', code: 'LOCAL_SAME_TOKEN', message, retryAfter: null })
      } else {
        draft.device({ enrollment: { by: 'user', token }, deviceId: device.deviceId ?? freshId, refusal: null })
      }
      return
    }
    case 'batch':
      draft.set({ busy: null })
      succeed(draft, 'down')
      storeBatch(draft, event)
      if (draft.state.down.error) pause(draft, 'down', draft.state.down.error)
      return
    case 'results': {
      draft.set({ busy: null })
      const left = storeResults(draft, event.results)
      if (left > 0) {
        const message = `the server asks for ${left} changes to be sent again later`
        return pause(draft, 'up', { kind: 'later', code: 'SYNC_ERROR', message, retryAfter: null })
      }
      succeed(draft, 'up')
      draft.lane('up', { wanted: hasUploads(draft) })
      if (draft.state.outbox.length === 0) draft.set({ uploadMax: UPLOAD_ITEMS_MAX })
      return
    }
    case 'acknowledged':
      draft.set({ busy: null })
      return
    case 'resolved':
      draft.set({ busy: null })
      succeed(draft, 'up')
      return dropDecided(draft)
    case 'failed':
      draft.set({ busy: null })
      return fail(draft, busy, event)
    case 'retry':
      if (event.lane !== 'live') draft.lane(event.lane, { pause: 'none' })
      else if (draft.state.live.status === 'waiting') draft.live({ status: 'closed' })
      return
    case 'liveOpened': {
      const { status, error } = draft.state.live
      if (status !== 'opening') return
      draft.live({ status: 'open', error: null })
      if (error?.kind === 'lost') reached(draft)
      // Earlier changes are not sent as events.
      draft.lane('down', { wanted: true })
      return
    }
    case 'liveSteady':
      draft.live({ failures: 0 })
      return
    case 'liveEvent':
      return handleLiveEvent(draft, event)
    case 'liveFailed':
      if (draft.state.live.status !== 'opening' && draft.state.live.status !== 'open') return
      return handleLiveFailure(draft, event.failure)
    case 'liveWanted':
      return wantLive(draft, event.wanted)
  }
}

function lead(draft: Draft, { leads, live, hasCredentials }: Event & { type: 'leads' }): void {
  draft.abandon()
  draft.closeLive()
  draft.set({ leads, hasCredentials })
  draft.live({ wanted: live, failures: 0 })
  for (const lane of ['up', 'down', 'auth'] as const) draft.want(lane, leads)
  if (draft.state.device.refusal?.code === REVOKED) draft.lane('auth', { wanted: false })
}

function want(draft: Draft, by: 'user' | 'hint' | 'timer'): void {
  for (const lane of ['up', 'down'] as const) {
    draft.lane(lane, { wanted: true })
    resume(draft, lane, by)
  }
  const { auth, device, live } = draft.state
  // Who signed out is asked again only when the user wants it.
  if (device.token === null && (by === 'user' || device.enrollment)) draft.lane('auth', { wanted: true })
  if (auth.wanted) resume(draft, 'auth', by)
  if (live.status === 'waiting' && (by === 'user' || (by === 'hint' && !live.isServerDelay))) {
    draft.live({ status: 'closed' })
  }
}

function resume(draft: Draft, lane: 'up' | 'down' | 'auth', by: 'user' | 'hint' | 'timer'): void {
  const { pause } = draft.state[lane]
  if (by === 'user' || (by === 'hint' && pause === 'backoff')) draft.lane(lane, { pause: 'none' })
}

function succeed(draft: Draft, lane: 'up' | 'down'): void {
  const { error } = draft.state[lane]
  draft.lane(lane, { failures: 0, error: null })
  if (error?.kind === 'lost') reached(draft)
}

/** The server is reachable again: what failed only because it was not is tried at once. */
function reached(draft: Draft): void {
  for (const lane of ['up', 'down', 'auth'] as const) {
    const { pause, error } = draft.state[lane]
    if (pause === 'backoff' && error?.kind === 'lost') draft.lane(lane, { pause: 'none' })
  }
  const { live } = draft.state
  if (live.status === 'waiting' && !live.isServerDelay && live.error?.kind === 'lost') draft.live({ status: 'closed' })
}

/** The first of the decided conflicts is closed, here or elsewhere. */
function dropDecided(draft: Draft): void {
  draft.device({ decided: draft.state.device.decided.slice(1) })
  draft.lane('up', { wanted: hasUploads(draft) })
}

/** Repeats the request after a delay. */
function pause(draft: Draft, name: 'up' | 'down' | 'auth', failure: Failure): void {
  const failures = draft.state[name].failures + 1
  const least = failure.kind === 'later' ? failure.retryAfter : null
  draft.lane(name, { wanted: true, pause: least === null ? 'backoff' : 'server', failures, error: failure })
  draft.does({ type: 'wait', lane: name, failures, least })
}

function fail(draft: Draft, busy: State['busy'], { failure, freshId }: Event & { type: 'failed' }): void {
  const lane = busy === 'up' || busy === 'resolve' ? 'up' : busy === 'enroll' || busy === 'credentials' ? 'auth' : 'down'
  if (failure.kind === 'lost' || failure.kind === 'later') return pause(draft, lane, failure)
  if (busy === 'enroll' && failure.kind === 'ended' && draft.state.device.enrollment?.by === 'code') {
    // An invalid code is 404 or 400: something else on the way asks for credentials.
    return pause(draft, 'auth', { kind: 'later', code: failure.code, message: failure.message, retryAfter: null })
  }
  if (busy === 'enroll' || busy === 'credentials') return refuseEnrollment(draft, failure, freshId)
  if (failure.kind === 'ended') return endToken(draft, failure.code, failure.message)
  if (busy === 'up' && failUpload(draft, failure)) return
  // It was resolved in another way, or is gone with its row.
  if (busy === 'resolve') return dropDecided(draft)
  if (failure.code === 'INVALID_CURSOR' && draft.state.device.cursor !== null) {
    draft.device({ cursor: null, inSnapshot: false })
    draft.lane('down', { wanted: true })
    return
  }
  // An error of the client, which a repeat does not fix.
  draft.lane(lane, { wanted: false, error: failure })
}

/** Handles a refusal that is about the number of items or their sequence numbers; returns whether it is one. */
function failUpload(draft: Draft, failure: Failure & { kind: 'refused' }): boolean {
  const { code, status, expected } = failure
  const items = inFlight(draft.state)
  const first = items[0]
  const isOversized = status === 413 || code === 'PAYLOAD_TOO_LARGE'
  const isRestored = code === 'DEVICE_RESTORED'
  if (!first || !(isOversized || isRestored || code === 'SEQUENCE_GAP')) return false
  if (items.length > 1 && (isOversized || isRestored)) {
    // Of a restored device the first items may be repeats, and get their results when they are sent alone.
    draft.set({ uploadMax: Math.ceil(items.length / 2) })
    return true
  }
  draft.set({ uploadMax: UPLOAD_ITEMS_MAX })
  if (isOversized) {
    refuse(draft, first, 'PAYLOAD_TOO_LARGE', 'this change alone is larger than the server accepts')
    withdraw(draft, first)
  } else if (expected !== null && expected > 0 && expected !== first.seq) {
    renumber(draft, expected)
    draft.lane('down', { wanted: true })
  } else {
    const message = 'the server refuses the sequence number that it expects'
    pause(draft, 'up', { kind: 'later', code, message, retryAfter: null })
  }
  return true
}
