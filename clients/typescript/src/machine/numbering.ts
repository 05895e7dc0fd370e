import type { Item } from '../outbox/item.js'
import type { Draft } from './draft.js'

/**
 * Numbers the outbox from what the server expects, and lets a snapshot begin. Either this device was restored or copied
 * and has used its numbers before, or the server was restored and does not have the last ones.
 */
export function renumber(draft: Draft, expected: number): void {
  const first = draft.state.outbox[0]
  if (!first) return
  const by = expected - first.seq
  draft.items((item) => ({
    ...item,
    seq: item.seq + by,
    // The results of earlier bases are stored, and their versions with the items.
    baseSeq: item.baseSeq === null || item.baseSeq < first.seq ? null : item.baseSeq + by,
  }))
  draft.device({ ackedSeq: expected - 1, cursor: null, inSnapshot: false })
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
