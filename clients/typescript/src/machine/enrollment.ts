import type { Draft } from './draft.js'
import type { Event } from './event.js'
import { EMPTY_DEVICE, type Failure, type Parked } from './state.js'

/** Begins to exchange a code or the token of a user for the token of a device. */
export function beginEnrollment(draft: Draft, { enrollment, freshId }: Event & { type: 'enroll' }): void {
  const { deviceId } = draft.state.device
  // The id is stored before it is sent: only the same device may repeat a request whose response was lost.
  draft.device({ enrollment, refusal: null, deviceId: deviceId ?? freshId })
  draft.want('auth')
}

export function storeEnrollment(draft: Draft, event: Event & { type: 'enrolled' }): void {
  const { device, outbox } = draft.state
  const { userId, deviceId, token } = event
  draft.closeLive()
  const enrolled = { deviceId, token, userId, enrollment: null, refusal: null }
  if (device.userId === null || device.userId === userId) {
    draft.device(enrolled)
  } else {
    // Rows and outbox of one user are private to that user. Unsent changes wait until that user returns.
    const others = device.parked.filter((parked) => parked.userId !== userId)
    const former: Parked = { userId: device.userId, ackedSeq: device.ackedSeq, outbox }
    const returned = device.parked.find((parked) => parked.userId === userId)
    draft.set({
      outbox: returned?.outbox ?? [],
      device: {
        ...EMPTY_DEVICE,
        ...enrolled,
        ackedSeq: returned?.ackedSeq ?? 0,
        generation: device.generation,
        parked: outbox.length > 0 ? [...others, former] : others,
      },
    })
    draft.clears = true
    draft.live({ seen: null, covered: null })
  }
  draft.want('auth', false)
  draft.lane('auth', { reason: 'start', refused: null })
  draft.want('up')
  draft.want('down')
}

/** What follows when `complete` or `POST /api/devices` refuses. */
export function refuseEnrollment(
  draft: Draft,
  failure: Failure & { kind: 'refused' | 'ended' },
  freshId: string,
): void {
  const { device, auth } = draft.state
  const { code, message } = failure
  const isRepeat = auth.error?.kind === 'refused' && auth.error.code === 'CONFLICT'
  if (code === 'CONFLICT' && !isRepeat) {
    // The id belongs to another user there. With another one the device can be enrolled.
    draft.device({ deviceId: freshId, token: null })
    draft.closeLive()
    draft.lane('auth', { error: failure, wanted: true })
    return
  }
  const wasUser = device.enrollment?.by === 'user'
  const token = device.enrollment?.token ?? null
  draft.device({ enrollment: null, refusal: { code, message } })
  draft.lane('auth', { error: failure, wanted: false })
  if (wasUser && failure.kind === 'ended' && draft.state.hasCredentials) {
    draft.lane('auth', { wanted: true, reason: 'refused', refused: token })
  }
}

/**
 * The code of a device that was revoked, or enrolled elsewhere under the same id. Credentials of the app may still be valid,
 * and would undo that: this device is added again only when the user wants it.
 */
export const REVOKED = 'DEVICE_REVOKED'

/** The token is no longer valid: rows and outbox stay. */
export function endToken(draft: Draft, code: string, message: string): void {
  const isRevoked = code === REVOKED
  draft.abandon()
  draft.device({ token: null, ...(isRevoked && { refusal: { code, message } }) })
  draft.closeLive()
  draft.lane('up', { wanted: false })
  draft.lane('down', { wanted: false })
  if (draft.state.hasCredentials) {
    draft.lane('auth', { wanted: !isRevoked, pause: 'none', reason: 'refused' })
  }
  if (isRevoked || !draft.state.hasCredentials) {
    draft.notify({ name: 'signedOut', code, message })
  }
}
