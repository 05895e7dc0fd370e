import type { StoredResult } from './machine/state.js'
import type { Item } from './outbox/item.js'
import type { Status } from './status.js'
import type { StoreError } from './store/store.js'
import type { Outcome, OutboxEntry } from './types.js'

export function entryOf(item: Item, state: OutboxEntry['state'], result: StoredResult | null): OutboxEntry {
  const { key, table, op, id, row, at } = item
  return {
    key,
    table,
    op,
    id,
    row,
    at,
    state,
    code: result?.code ?? null,
    message: result?.message ?? null,
    server: result?.server ?? null,
  }
}

export function failed(error: StoreError): Outcome {
  return { ok: false, code: error.code, message: error.message }
}

export function failedStatus({ error, state }: Status): Outcome {
  if (error) return { ok: false, code: error.code, message: error.message, retryAt: error.retryAt }
  if (state === 'unenrolled')
    return { ok: false, code: 'LOCAL_NOT_ENROLLED', message: 'this device is not enrolled: call login or enroll' }
  return { ok: false, code: 'LOCAL_TIMEOUT', message: 'the sync takes longer; status shows its progress' }
}
