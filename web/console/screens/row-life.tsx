import type { TraceChange, TraceStep } from '../../api/types'
import { Facts } from '../../parts/facts'
import { clockTime, milliseconds, shortId } from '../../parts/format'

type Moment = { name: string; who: string | null; ms: number | null }

const COLUMNS_SHOWN = 5

/** One change from its commit to the last device that confirmed it, with the time of each step. */
export function RowLife(props: { change: TraceChange; steps: TraceStep[]; onClose: () => void }) {
  const { change, steps, onClose } = props
  const moments = momentsOf(steps)
  const last = Math.max(1, ...moments.map((moment) => moment.ms ?? 0))
  return (
    <section class="panel life" aria-label="Life of the change">
      <div class="life-head">
        <h2>
          {change.op} in {change.table}
        </h2>
        <button type="button" onClick={onClose}>
          Close
        </button>
      </div>
      <Facts
        facts={[
          ['Row', <code>{change.row_id ?? '–'}</code>],
          ['Tenant', change.tenant],
          ['Commit', <code>{change.commit_lsn}</code>],
          ['Transaction', change.xid],
          ['Stream entry', <code>{change.id}</code>],
          ['Columns', columnsText(change.columns)],
        ]}
      />
      <ol class="moments">
        {moments.map((moment, index) => (
          <li key={index}>
            <span class="moment-name">
              {moment.name}
              {moment.who && <small> {moment.who}</small>}
            </span>
            <span class="moment-time">
              {index === 0 ? timeOf(change) : sinceCommit(moment.ms)}
            </span>
            <span class="moment-bar" aria-hidden="true">
              {moment.ms !== null && <span style={{ left: `${((moment.ms / last) * 100).toFixed(2)}%` }} />}
            </span>
          </li>
        ))}
      </ol>
    </section>
  )
}

function timeOf({ committed_at: at }: TraceChange): string {
  return at === null ? 'time unknown' : clockTime(at, true)
}

/** `+3.2 ms`; the time of the commit may be unknown. */
export function sinceCommit(ms: number | null): string {
  return ms === null ? 'time unknown' : `+${milliseconds(ms)}`
}

function columnsText(columns: string[]): string {
  const more = columns.length - COLUMNS_SHOWN
  const shown = columns.slice(0, COLUMNS_SHOWN).join(', ') || '–'
  return more > 0 ? `${shown} and ${more} more` : shown
}

export function momentsOf(steps: TraceStep[]): Moment[] {
  const moments: Moment[] = [{ name: 'committed', who: null, ms: 0 }]
  for (const step of steps) moments.push({ name: step.step, who: whoOf(step), ms: step.ms })
  return moments.sort((a, b) => (a.ms ?? Infinity) - (b.ms ?? Infinity))
}

function whoOf({ device, user }: TraceStep): string | null {
  if (device !== null) return `device ${shortId(device)}`
  return user === null ? null : `user ${shortId(user)}`
}
