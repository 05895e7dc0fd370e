import { url } from '../../api/client'
import type { Quarantine as List, QuarantineEntry } from '../../api/types'
import { ActionButton } from '../../parts/action'
import { Command } from '../../parts/command'
import { Time } from '../../parts/duration'
import { count } from '../../parts/format'
import { useResource } from '../../parts/hooks'
import { Loaded } from '../../parts/loaded'
import type { Params } from '../routes'
import { TenantPicker, useTenant } from '../tenant-picker'

export function Quarantine({ params }: { params: Params }) {
  const { tenant, tenants } = useTenant(params)
  const path = tenant === null ? null : url(['tenants', tenant, 'quarantine'], { limit: 100 })
  const resource = useResource<List>(path, 2000)
  return (
    <>
      <div class="filters">
        <TenantPicker tenants={tenants} value={tenant} />
      </div>
      <Loaded resource={resource}>
        {(list) =>
          list.count === 0 ? (
            <p class="empty">The quarantine of {tenant} is empty: every change was delivered.</p>
          ) : (
            <>
              <p class="lead">
                {count(list.count, 'change')} could not be delivered
                {list.count > list.entries.length && <>; the newest {list.entries.length} are shown</>}.
              </p>
              <Causes entries={list.entries} />
              <ul class="cards">
                {list.entries.map((entry) => (
                  <Entry key={entry.id} entry={entry} tenant={tenant ?? ''} onChanged={resource.reload} />
                ))}
              </ul>
            </>
          )
        }
      </Loaded>
    </>
  )
}

/** How often each cause occurs, the most frequent first. */
export function causesOf(entries: readonly QuarantineEntry[]): [cause: string, times: number][] {
  const times = new Map<string, number>()
  for (const { cause } of entries) times.set(cause, (times.get(cause) ?? 0) + 1)
  return [...times].sort((a, b) => b[1] - a[1])
}

function Causes({ entries }: { entries: readonly QuarantineEntry[] }) {
  const causes = causesOf(entries)
  if (causes.length < 2) return null
  return (
    <ul class="causes">
      {causes.map(([cause, times]) => (
        <li key={cause}>
          <span class="badge">{times}</span> {cause}
        </li>
      ))}
    </ul>
  )
}

function Entry(props: { entry: QuarantineEntry; tenant: string; onChanged: () => void }) {
  const { entry, tenant, onChanged } = props
  return (
    <li class="panel">
      <div class="life-head">
        <h2>
          {entry.table ?? entry.fields['stream'] ?? 'A change'} {entry.row_id && <code>{entry.row_id}</code>}
        </h2>
        <span class="tag">{entry.kind ?? 'unknown'}</span>
      </div>
      <p>{entry.cause}</p>
      <p class="sub">
        <Time at={entry.time} /> · entry <code>{entry.id}</code>
        {entry.position && (
          <>
            {' · position '}
            <code>{entry.position}</code>
          </>
        )}
      </p>
      <p>
        {remedyText(entry)} <Command text={commandOf(entry, tenant)} />
      </p>
      <details>
        <summary>All fields</summary>
        <dl class="facts">
          {Object.entries(entry.fields).map(([name, value]) => (
            <div key={name}>
              <dt>{name}</dt>
              <dd class="mono">{value}</dd>
            </div>
          ))}
        </dl>
      </details>
      <div class="buttons start">
        {entry.remedy.action !== 'sender' && (
          <ActionButton
            onDone={onChanged}
            action={{
              verb: 'Deliver the change',
              name: entry.id,
              noun: 'the id of the entry',
              path: url(['tenants', tenant, 'quarantine', entry.id, 'retry']),
              effect:
                entry.remedy.action === 'resync'
                  ? 'The streams of the tenant are recreated, and each of its devices takes a snapshot. Fix the cause first.'
                  : 'The row is touched, so that its users receive it as it is now. Fix the cause first.',
            }}
          />
        )}
        <ActionButton
          onDone={onChanged}
          action={{
            verb: 'Drop the entry',
            name: entry.id,
            noun: 'the id of the entry',
            path: url(['tenants', tenant, 'quarantine', entry.id, 'drop']),
            danger: true,
            effect: 'The entry leaves the quarantine. The change that it holds is not delivered to any device.',
          }}
        />
      </div>
    </li>
  )
}

function remedyText({ remedy }: QuarantineEntry): string {
  const why = remedy.why ? `, because ${remedy.why}` : ''
  if (remedy.action === 'resync') return `Fix the cause, then restart the streams of the tenant${why}:`
  if (remedy.action === 'sender') return 'Its sender must send a corrected message. Then drop this one:'
  return 'Fix the cause, then write the row once more:'
}

function commandOf({ id, remedy }: QuarantineEntry, tenant: string): string {
  if (remedy.action === 'resync') return `posduif stream quarantine retry --tenant ${tenant} ${id} --resync --yes`
  if (remedy.action === 'sender') return `posduif stream quarantine drop --tenant ${tenant} ${id}`
  return `posduif stream quarantine retry --tenant ${tenant} ${id}`
}
