import type { OutboxEntry } from '@posduif/client'
import type { Pane } from '../model/pane'
import { splitTag } from '../model/tag'
import { useSnapshot } from './hooks'

type Props = { readonly pane: Pane; readonly resolve: (key: string, choice: 'mine' | 'server') => Promise<void> }

/** Changes that the engine refused, with both versions where there are two. */
export function Conflicts({ pane, resolve }: Props) {
  const entries = useSnapshot(pane.outbox)
  const conflicts = entries.filter(({ state }) => state === 'conflict')
  const rejected = entries.filter(({ state }) => state === 'rejected')
  const [me, other] = pane.name === 'joe' ? ['Joe', 'Bob'] : ['Bob', 'Joe']
  if (conflicts.length + rejected.length === 0) return null
  return (
    <div class="refused" role="region" aria-label="Changes to decide">
      {conflicts.map((entry) => (
        <div class="conflict" key={entry.key}>
          <p class="conflict-title">
            {me} and {other} have changed the same row
          </p>
          <div class="versions">
            <button type="button" onClick={() => void resolve(entry.key, 'mine')}>
              <span class="whose">{me}’s version</span>
              <span class="what">{describe(entry.op === 'delete' ? null : { ...entry.server, ...entry.row })}</span>
              <span class="pick">Keep {me}’s</span>
            </button>
            <button type="button" onClick={() => void resolve(entry.key, 'server')}>
              <span class="whose">In Postgres</span>
              <span class="what">{describe(entry.server)}</span>
              <span class="pick">Keep this one</span>
            </button>
          </div>
        </div>
      ))}
      {rejected.map((entry) => (
        <div class="rejected" key={entry.key}>
          <p>
            Refused: {entry.message ?? entry.code}. {describe(entry.row)}
          </p>
          <button type="button" onClick={() => pane.discard(entry.key)}>
            Dismiss
          </button>
        </div>
      ))}
    </div>
  )
}

function describe(row: OutboxEntry['row'] | null): string {
  if (row === null) return 'deleted'
  const text = row['title'] ?? row['content']
  const { text: words } = splitTag(typeof text === 'string' ? text : '')
  const done = row['done'] === true ? ', done' : ''
  return words === '' ? `done: ${row['done'] === true ? 'yes' : 'no'}` : `${words}${done}`
}
