import { useState } from 'preact/hooks'
import { figures } from '../../api/figures'
import { url } from '../../api/client'
import type { Conflict, Conflicts } from '../../api/types'
import { ActionButton } from '../../parts/action'
import { Time } from '../../parts/duration'
import { jsonText, number, shortId } from '../../parts/format'
import { useResource, useStore } from '../../parts/hooks'
import { State } from '../../parts/level'
import { Loaded } from '../../parts/loaded'
import { More } from '../../parts/more'
import { Stale } from '../../parts/stale'
import { href } from '../location'
import type { Params } from '../routes'
import { TenantPicker, useTenant } from '../tenant-picker'
import { UploadsChart } from './uploads-chart'

const PAGE = 100

export function Uploads({ params }: { params: Params }) {
  const { latest, receivedAt } = useStore(figures.state)
  const { tenant, tenants } = useTenant(params)
  const [limit, setLimit] = useState(PAGE)
  const path = tenant === null ? null : url(['tenants', tenant, 'conflicts'], { limit })
  const resource = useResource<Conflicts>(path, 5000)
  return (
    <>
      <Stale at={receivedAt}>
        <UploadsChart ring={figures.ring} height={160} />
        <Rejections counts={latest?.rejections ?? {}} />
      </Stale>
      <h2>Conflicts</h2>
      <div class="filters">
        <TenantPicker tenants={tenants} value={tenant} />
      </div>
      <Loaded resource={resource} live={false}>
        {({ conflicts, has_more }) =>
          conflicts.length === 0 ? (
            <p class="empty">No conflict has been recorded.</p>
          ) : (
            <>
              <ul class="cards">
                {conflicts.map((conflict) => (
                  <OneConflict
                    key={conflict.id}
                    conflict={conflict}
                    tenant={tenant ?? ''}
                    onChanged={resource.reload}
                  />
                ))}
              </ul>
              <More hasMore={has_more} onMore={() => setLimit(limit + PAGE)} />
            </>
          )
        }
      </Loaded>
    </>
  )
}

/** Causes of rejections, the most frequent first. */
export function causesOfRejections(counts: Readonly<Record<string, number>>): [code: string, count: number][] {
  return Object.entries(counts).sort((a, b) => b[1] - a[1])
}

function Rejections({ counts }: { counts: Readonly<Record<string, number>> }) {
  const causes = causesOfRejections(counts)
  if (causes.length === 0) return null
  return (
    <section aria-label="Rejections">
      <p class="lead">Rejected since the engine started, by the code of the cause:</p>
      <ul class="causes">
        {causes.map(([code, times]) => (
          <li key={code}>
            <span class="badge">{number(times)}</span> <code>{code}</code>
          </li>
        ))}
      </ul>
    </section>
  )
}

function OneConflict(props: { conflict: Conflict; tenant: string; onChanged: () => void }) {
  const { conflict, tenant, onChanged } = props
  const { id, table, row_id, username, device_id, created_at, resolved_at, resolution } = conflict
  return (
    <li class="panel">
      <div class="life-head">
        <h3>
          {table} {row_id !== null && <code title={row_id}>{shortId(row_id)}</code>}
        </h3>
        {resolved_at === null ? (
          <State level="warn">open</State>
        ) : (
          <State level="none">{resolution ? `resolved: ${resolution}` : 'resolved'}</State>
        )}
      </div>
      <p class="sub">
        <Time at={created_at} /> {jsonText(conflict.client?.['op'])} by {username ?? 'a user that no longer exists'}
        {device_id && (
          <>
            {' on '}
            <a href={href('devices', { tenant, device: device_id })}>{shortId(device_id)}</a>
          </>
        )}
        {' · conflict '}
        <code title={id}>{shortId(id)}</code>
      </p>
      <Versions conflict={conflict} />
      {resolved_at === null && (
        <div class="buttons start">
          {(['server', 'client'] as const).map((side) => (
            <ActionButton
              key={side}
              onDone={onChanged}
              action={{
                verb: `Choose the ${side}`,
                name: id,
                noun: 'the id of the conflict',
                path: url(['tenants', tenant, 'conflicts', id, 'resolve']),
                body: { choose: side },
                danger: side === 'client',
                effect:
                  side === 'server'
                    ? 'The row stays as it is in Postgres, and the conflict counts as resolved.'
                    : 'The version of the device is written over the row in Postgres and delivered to all devices.',
              }}
            />
          ))}
        </div>
      )}
    </li>
  )
}

type Line = { name: string; server: string | null; client: string | null; differs: boolean }

/** The columns of both versions, those that the device changed first. `null`: the version does not have the column. */
export function linesOf({ client, server }: Pick<Conflict, 'client' | 'server'>): Line[] {
  const { op: _, row, ...message } = client ?? {}
  // Of an own table, the device sends its columns as `row`.
  const sent = isObject(row) ? row : message
  const names = new Set([...Object.keys(server ?? {}), ...Object.keys(sent)])
  const text = (version: Record<string, unknown> | null, name: string): string | null =>
    version !== null && name in version ? (version[name] === null ? 'null' : jsonText(version[name])) : null
  const lines = [...names].map((name) => {
    const [ours, theirs] = [text(server, name), text(sent, name)]
    return { name, server: ours, client: theirs, differs: theirs !== null && theirs !== ours }
  })
  return lines.sort((a, b) => Number(b.differs) - Number(a.differs))
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** Both versions side by side; rows that differ are marked. */
function Versions({ conflict }: { conflict: Conflict }) {
  const { client, server } = conflict
  const isDelete = client === null || client['op'] === 'delete'
  return (
    <div class="scroll" role="region" aria-label={`Versions of conflict ${conflict.id}`} tabIndex={0}>
      <table class="versions">
        <thead>
          <tr>
            <th scope="col">Column</th>
            <th scope="col">Server</th>
            <th scope="col">Client</th>
          </tr>
        </thead>
        <tbody>
          {linesOf(conflict).map((line) => (
            <tr key={line.name} class={line.differs ? 'differs' : undefined}>
              <th scope="row">
                {line.name}
                {line.differs && <span class="visually-hidden"> differs</span>}
              </th>
              <td>{server === null ? 'deleted' : (line.server ?? <span class="none">–</span>)}</td>
              <td>{line.client ?? <span class="none">{isDelete ? 'deleted' : 'unchanged'}</span>}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  )
}
