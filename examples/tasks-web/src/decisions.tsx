import type { OutboxEntry } from '@posduif/client'
import { useOutbox } from './outbox'
import { posduif } from './posduif'

/** Changes that lost against another one, or that the server refused. They stay, also after a reload, until it is decided. */
export function Decisions() {
  const open = useOutbox().filter(({ state }) => state === 'conflict' || state === 'rejected')
  if (open.length === 0) return null
  return (
    <section aria-label="To decide">
      {open.map((entry) => (
        <Decision key={entry.key} entry={entry} />
      ))}
    </section>
  )
}

function Decision({ entry }: { readonly entry: OutboxEntry }) {
  const { key, state, op, row, server, message } = entry
  const mine = op === 'delete' ? 'delete it' : describe(row)
  const theirs = server ? describe(server, Object.keys(row)) : 'deleted, or not visible to you'
  return (
    <div className="card decision" role="group" aria-label={state === 'conflict' ? 'Conflict' : 'Refused change'}>
      {state === 'conflict' ? (
        <p>
          This task was changed elsewhere while your change was on its way.
          <br />
          Yours: <b>{mine}</b>
          <br />
          Theirs: <b>{theirs}</b>
        </p>
      ) : (
        <p>
          The server refused <b>{mine}</b>: {message}
        </p>
      )}
      <button type="button" className="primary" onClick={() => void posduif.outbox.retry(key)}>
        {state === 'conflict' ? 'Take mine' : 'Try again'}
      </button>
      <button type="button" onClick={() => void posduif.outbox.discard(key)}>
        {state === 'conflict' ? 'Keep what is there' : 'Discard'}
      </button>
    </div>
  )
}

/** Of the columns that the change wrote. */
function describe(row: OutboxEntry['row'], columns: readonly string[] = Object.keys(row)): string {
  const { title, done } = row
  const parts = [
    ...(typeof title === 'string' ? [`“${title}”`] : []),
    ...(columns.includes('done') ? [done === true ? 'done' : 'not done'] : []),
  ]
  return parts.join(', ')
}
