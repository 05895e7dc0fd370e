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
