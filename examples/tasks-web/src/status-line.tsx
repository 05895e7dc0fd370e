import type { Status } from '@posduif/client'
import { useStatus } from '@posduif/client/react'
import { posduif } from './posduif'

/** One sentence about the sync, in the words of a user. */
export function StatusLine() {
  const status = useStatus(posduif)
  return (
    <header>
      <p role="status" data-kind={kindOf(status)}>
        {sentenceOf(status)}
      </p>
      <span className="quiet">{status.leader ? 'This tab syncs' : 'Another tab syncs'}</span>
      <button type="button" onClick={() => void posduif.sync()}>
        Sync
      </button>
    </header>
  )
}

function kindOf({ state, upToDate, online, error }: Status): string {
  if (error?.at === 'store' || state === 'unenrolled') return 'bad'
  return online && upToDate ? 'good' : 'wait'
}

function sentenceOf({ state, upToDate, online, progress, outbox, error }: Status): string {
  const kept = outbox.waiting === 0 ? '' : `, ${outbox.waiting} ${outbox.waiting === 1 ? 'change is' : 'changes are'} kept`
  if (error?.at === 'store') return `The storage of this browser failed: ${error.message}`
  if (state === 'unenrolled') return `Signed out${kept}`
  if (!online) return `Offline${kept}`
  if (progress) return `Loading, ${progress.rows} rows`
  if (outbox.waiting > 0) return `Sending ${outbox.waiting}`
  return upToDate ? 'Up to date' : 'Connecting'
}
