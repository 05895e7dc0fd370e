import type { Item } from '../outbox/item.js'
import { Draft } from './draft.js'
import type { Step } from './effect.js'
import type { Event } from './event.js'
import type { State } from './state.js'
import { append } from './write.js'

type Local = Extract<Event, { readonly type: 'loaded' | 'write' | 'discard' }>

/**
 * The part of `transition` for a client that does not lead: it reads, and adds changes to the outbox. The other events come
 * with the part that syncs, and are none here.
 */
export function localTransition(state: State, event: Event): Step {
  const draft = new Draft(state, 'stored' in event ? event.stored : undefined)
  if (isLocal(event)) handleLocal(draft, event)
  return draft.step()
}

export function isLocal(event: Event): event is Local {
  return event.type === 'loaded' || event.type === 'write' || event.type === 'discard'
}

export function handleLocal(draft: Draft, event: Local): void {
  switch (event.type) {
    case 'loaded':
      return load(draft, event)
    case 'write':
      return append(draft, event.writes)
    case 'discard':
      return discard(draft, event)
  }
}

/** The storage is the truth: a request that is based on other contents is abandoned. */
function load(draft: Draft, { device, outbox }: Event & { type: 'loaded' }): void {
  const before = draft.state.device
  const isOther = device.token !== before.token || device.cursor !== before.cursor || device.userId !== before.userId
  draft.set({ device, outbox })
  if (isOther) {
    draft.abandon()
    draft.closeLive()
    draft.want('down')
  }
  if (hasUploads(draft)) draft.lane('up', { wanted: true })
  if (device.enrollment && device.enrollment.token !== before.enrollment?.token) draft.want('auth')
}

function discard(draft: Draft, { key, result }: Event & { type: 'discard' }): void {
  const { outbox, device } = draft.state
  if (result) draft.results.set(key, null)
  if (result && result.isOpen !== false && result.conflictId !== null) {
    draft.device({ decided: [...device.decided, result.conflictId] })
    draft.lane('up', { wanted: true })
  }
  const item = outbox.find((each) => each.key === key)
  if (item?.sent === 'no') withdraw(draft, item)
}

/** Takes an item out of the outbox whose number was not used up. Those based on it get its base. */
export function withdraw(draft: Draft, gone: Item): void {
  draft.items((item) => {
    if (item.seq <= gone.seq) return item === gone ? null : item
    const isBased = item.baseSeq === gone.seq
    const baseSeq = isBased ? gone.baseSeq : item.baseSeq
    return {
      ...item,
      seq: item.seq - 1,
      baseSeq: baseSeq !== null && baseSeq > gone.seq ? baseSeq - 1 : baseSeq,
      baseVersion: isBased ? gone.baseVersion : item.baseVersion,
    }
  })
}

export function hasUploads({ state: { outbox, device } }: Draft): boolean {
  return outbox.length + device.decided.length > 0
}
