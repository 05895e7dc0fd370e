import { useState } from 'preact/hooks'
import { figures } from '../../api/figures'
import { url } from '../../api/client'
import type { Audit, AuditEntry, Epoch, TenantRow } from '../../api/types'
import { Time } from '../../parts/duration'
import { Field } from '../../parts/field'
import { detailText, jsonText, number, shortId } from '../../parts/format'
import { useResource, useStore } from '../../parts/hooks'
import { Loaded } from '../../parts/loaded'
import { More } from '../../parts/more'
import { Name } from '../../parts/name'
import { Table, type ColumnOf } from '../../parts/table'
import { setParams } from '../location'
import type { Params } from '../routes'
import { TenantPicker } from '../tenant-picker'

const PAGE = 100

export function History({ params }: { params: Params }) {
  const { tenant = '', actor = '', action = '' } = params
  const { restarts } = useStore(figures.state)
  const [limit, setLimit] = useState(PAGE)
  const tenants = useResource<{ tenants: TenantRow[] }>(url(['tenants']), null)
  const epochs = useResource<{ epochs: Epoch[] }>(url(['epochs'], { limit: 50 }), 10_000)
  const audit = useResource<Audit>(url(['audit'], { tenant, actor, action, limit }), 10_000)
  return (
    <>
      <h2>Epochs</h2>
      <p class="lead">
        An epoch is a time in which the log was read without a gap. A new one makes every device take a snapshot.
        {restarts.length > 0 && (
          <>
            {' '}
            Since this page was opened, the engine restarted{' '}
            {restarts.length === 1 ? 'once' : `${restarts.length} times`}, last at <Time at={restarts.at(-1)} />.
          </>
        )}
      </p>
      <Loaded resource={epochs} live={false}>
        {(found) => (
          <Table
            label="Epochs"
            columns={EPOCHS}
            rows={found.epochs}
            rowKey={(epoch) => String(epoch.number)}
            empty="No engine has started an epoch yet."
          />
        )}
      </Loaded>
      <h2>Audit</h2>
      <div class="filters">
        <TenantPicker tenants={tenants.data?.tenants.map((one) => one.name) ?? []} value={tenant} all />
        <Field label="Actor" value={actor} onChange={(value) => setParams({ actor: value || null })} />
        <label>
          Action
          <select value={action} onChange={(event) => setParams({ action: event.currentTarget.value || null })}>
            <option value="">all</option>
            {(audit.data?.actions ?? (action ? [action] : [])).map((name) => (
              <option key={name} value={name}>
                {name}
              </option>
            ))}
          </select>
        </label>
      </div>
      <Loaded resource={audit} live={false}>
        {({ entries }) => (
          <>
            <Table
              label="Audit"
              columns={AUDIT}
              rows={entries}
              rowKey={(entry) => String(entry.id)}
              empty="No entry fits the filters."
            />
            <More hasMore={entries.length >= limit} onMore={() => setLimit(limit + PAGE)} />
          </>
        )}
      </Loaded>
    </>
  )
}

const EPOCHS: ColumnOf<Epoch>[] = [
  { key: 'number', head: 'Epoch', cell: (epoch) => number(epoch.number) },
  { key: 'at', head: 'Started', cell: (epoch) => <Time at={epoch.started_at} /> },
  { key: 'reason', head: 'Reason', wrap: true, cell: (epoch) => epoch.reason },
  { key: 'lsn', head: 'Start LSN', cell: (epoch) => <code>{epoch.start_lsn}</code> },
  { key: 'id', head: 'Id', cell: (epoch) => <code>{epoch.id}</code> },
]

const AUDIT: ColumnOf<AuditEntry>[] = [
  { key: 'at', head: 'At', cell: (entry) => <Time at={entry.at} /> },
  { key: 'action', head: 'Action', cell: (entry) => entry.action.replaceAll('_', ' ') },
  { key: 'tenant', head: 'Tenant', name: true, cell: (entry) => (entry.tenant ? <Name text={entry.tenant} /> : '–') },
  { key: 'actor', head: 'Actor', cell: (entry) => <span title={entry.actor}>{shortId(entry.actor)}</span> },
  {
    key: 'subject',
    head: 'Subject',
    cell: (entry) => (entry.subject ? <code title={entry.subject}>{shortId(entry.subject)}</code> : '–'),
  },
  { key: 'address', head: 'Address', cell: (entry) => entry.address ?? '–' },
  { key: 'detail', head: 'Detail', wrap: true, cell: (entry) => <span title={jsonText(entry.detail)}>{detailText(entry.detail) || '–'}</span> },
]
