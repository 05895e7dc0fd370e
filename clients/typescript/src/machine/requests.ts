import type { Draft } from './draft.js'
import type { Busy } from './state.js'

/** Sends the next request, if one is wanted and none is in flight. The outbox goes first, also between two batches. */
export function proceed(draft: Draft): void {
  const { device, leads, busy, outbox, up, down, auth } = draft.state
  if (!leads) return
  if (!busy) {
    if (isReady(auth) && device.enrollment && device.deviceId !== null) {
      begin(draft, 'enroll')
      const { ticket } = draft.state
      return draft.does({ type: 'enroll', ticket, enrollment: device.enrollment, deviceId: device.deviceId })
    }
    if (device.token === null) {
      if (!isReady(auth) || !draft.state.hasCredentials) return
      begin(draft, 'credentials')
      return draft.does({ type: 'credentials', ticket: draft.state.ticket, reason: auth.reason })
    }
    const [conflict] = device.decided
    if (isReady(up) && outbox.length > 0) upload(draft)
    else if (isReady(up) && conflict !== undefined) {
      begin(draft, 'resolve')
      draft.does({ type: 'resolve', ticket: draft.state.ticket, conflict })
    } else if (isReady(down)) requestBatch(draft)
    else if (draft.state.isUnacknowledged && device.cursor !== null && down.pause === 'none') {
      begin(draft, 'ack')
      draft.set({ isUnacknowledged: false })
      draft.does({ type: 'acknowledge', ticket: draft.state.ticket, cursor: device.cursor })
    }
  }
  openLive(draft)
}

/** The next request repeats what failed, if the delay is over. */
export function isReady(lane: { readonly wanted: boolean; readonly pause: string }): boolean {
  return lane.wanted && lane.pause === 'none'
}

function upload(draft: Draft): void {
  const { outbox, uploadMax, device } = draft.state
  const items = outbox.slice(0, uploadMax)
  const last = items.at(-1)
  if (!last) return
  begin(draft, 'up')
  // Whether an item was ever sent is stored before it is.
  draft.items((item) => (item.seq <= last.seq && item.sent === 'no' ? { ...item, sent: 'yes' } : item))
  draft.set({ sentUpTo: last.seq })
  const pending = outbox.length - items.length
  draft.does({ type: 'upload', ticket: draft.state.ticket, items, ackedSeq: device.ackedSeq, pending })
}

function requestBatch(draft: Draft): void {
  begin(draft, 'down')
  draft.lane('down', { wanted: false })
  draft.live({ covered: draft.state.live.seen })
  // A request with a cursor acknowledges it.
  if (draft.state.device.cursor !== null) draft.set({ isUnacknowledged: false })
  draft.does({ type: 'fetch', ticket: draft.state.ticket, cursor: draft.state.device.cursor })
}

function begin(draft: Draft, busy: Busy): void {
  draft.set({ busy, ticket: draft.state.ticket + 1 })
}

/** Opens the stream once the first sync is done, so that the sync does not wait for it. */
function openLive(draft: Draft): void {
  const { busy, down, live, device } = draft.state
  if (!live.wanted || live.status !== 'closed' || device.token === null || busy || isReady(down)) return
  draft.live({ status: 'opening' })
  draft.does({ type: 'openLive', lastEventId: device.lastEventId })
}
