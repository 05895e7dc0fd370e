import { url } from '../../api/client'
import type { TenantDetail } from '../../api/types'
import { ActionButton } from '../../parts/action'
import type { Action } from '../../parts/confirm-name'
import { Time } from '../../parts/duration'
import { Facts, type Fact } from '../../parts/facts'
import { bytes, number } from '../../parts/format'
import { useResource } from '../../parts/hooks'
import { State } from '../../parts/level'
import { Loaded } from '../../parts/loaded'
import { setParams } from '../location'
import { tenantLevel } from './tenants'

/** One tenant with its actions. */
export function TenantView({ tenant, onChanged }: { tenant: string; onChanged: () => void }) {
  const resource = useResource<TenantDetail>(url(['tenants', tenant]), 2000)
  const changed = (): void => {
    resource.reload()
    onChanged()
  }
  return (
    <section class="panel detail" aria-label="Tenant">
      <div class="life-head">
        <h2>{tenant}</h2>
        <button type="button" onClick={() => setParams({ tenant: null })}>
          Close
        </button>
      </div>
      <Loaded resource={resource}>
        {(detail) => (
          <>
            <Facts facts={factsOf(detail)} />
            <div class="buttons start">
              {actionsOf(tenant, detail.state).map((action) => (
                <ActionButton key={action.verb} action={action} onDone={changed} />
              ))}
            </div>
          </>
        )}
      </Loaded>
    </section>
  )
}

function factsOf(detail: TenantDetail): Fact[] {
  const { streams } = detail
  return [
    [
      'State',
      <State level={tenantLevel({ state: detail.state, error: streams.error, quarantine: streams.quarantine })}>
        {detail.state}
      </State>,
    ],
    ['Schema', <code>{detail.schema}</code>],
    ['Created', <Time at={detail.created_at} />],
    ['Generation', number(detail.generation)],
    ['Registration', detail.registration_open ? 'open' : 'closed'],
    ['Web users', number(detail.web_users)],
    ['Mobile users', number(detail.mobile_users)],
    ['Disabled users', number(detail.disabled_users)],
    ['Devices', `${number(detail.devices)}, ${number(detail.revoked_devices)} revoked`],
    ['Open conflicts', number(detail.open_conflicts)],
    ['Changes', number(streams.changes)],
    ['Shared', number(streams.shared)],
    ['Inboxes', `${number(streams.inboxes)} with ${number(streams.inbox_entries)} entries`],
    ['Longest inbox', number(streams.longest_inbox)],
    ['Quarantine', number(streams.quarantine)],
    [
      'Memory in Redis',
      <span class={streams.exceeded ? 'fail' : undefined}>
        {bytes(streams.memory_bytes)} of {bytes(streams.budget_bytes)}
      </span>,
    ],
    ['Error', streams.error ? <span class="fail">{streams.error}</span> : 'none'],
  ]
}

function actionsOf(tenant: string, state: string): Action[] {
  const shared = { name: tenant, noun: 'the name of the tenant' }
  const path = (verb: string): string => url(['tenants', tenant, verb])
  return [
    state === 'paused'
      ? {
          ...shared,
          verb: 'Resume delivery',
          path: path('resume'),
          effect: 'Devices and readers of the tenant receive the changes that accumulated.',
        }
      : {
          ...shared,
          verb: 'Pause delivery',
          path: path('pause'),
          danger: true,
          effect: 'Devices receive no changes until delivery resumes. Changes accumulate, uploads are accepted.',
        },
    {
      ...shared,
      verb: 'Resync',
      path: path('resync'),
      danger: true,
      effect:
        'The streams of the tenant restart: each of its devices takes a snapshot of its rows, and other readers ' +
        'receive a reset.',
    },
  ]
}
