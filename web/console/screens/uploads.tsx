import { useState } from 'preact/hooks'
import { figures } from '../../api/figures'
import { url } from '../../api/client'
import type { Conflict, Conflicts } from '../../api/types'
import { ActionButton } from '../../parts/action'
import { Time } from '../../parts/duration'
import { jsonText, shortId } from '../../parts/format'
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
  const { receivedAt } = useStore(figures.state)
  const { tenant, tenants } = useTenant(params)
  const [limit, setLimit] = useState(PAGE)
  const path = tenant === null ? null : url(['tenants', tenant, 'conflicts'], { limit })
  const resource = useResource<Conflicts>(path, 5000)
  return (
    <>
      <Stale at={receivedAt}>
        <UploadsChart ring={figures.ring} height={160} />
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

/** Both versions side by side; rows that differ are marked. */
function Versions({ conflict }: { conflict: Conflict }) {
  const { client, server } = conflict
  // `op` says what the device did; it is no column.
  const all = new Set([...Object.keys(server ?? {}), ...Object.keys(client ?? {})])
  const names = [...all].filter((name) => name !== 'op')
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
          {names.map((name) => {
            const [ours, theirs] = [jsonText(server?.[name]), jsonText(client?.[name])]
            const differs = client !== null && name in client && ours !== theirs
            return (
              <tr key={name} class={differs ? 'differs' : undefined}>
                <th scope="row">
                  {name}
                  {differs && <span class="visually-hidden"> differs</span>}
                </th>
                <td>{server === null ? 'deleted' : ours}</td>
                <td>{client === null ? 'deleted' : name in client ? theirs : <span class="none">unchanged</span>}</td>
              </tr>
            )
          })}
        </tbody>
      </table>
    </div>
  )
}
