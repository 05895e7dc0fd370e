import { useEffect, useRef } from 'preact/hooks'
import { url } from '../../api/client'
import { Tails } from '../../api/ring'
import type { Level, TenantRow } from '../../api/types'
import { number } from '../../parts/format'
import { useResource } from '../../parts/hooks'
import { State } from '../../parts/level'
import { Loaded } from '../../parts/loaded'
import { Name } from '../../parts/name'
import { Sparkline } from '../../parts/sparkline'
import { Table, type ColumnOf } from '../../parts/table'
import { href, setParams } from '../location'
import type { Params } from '../routes'
import { TenantView } from './tenant'

const EVERY_MS = 5000

/** What the small lines show. */
const SHOWN_MS = 120_000

/** Entries that were added to a tenant's streams between two readings. */
class Growth {
  readonly tails = new Tails(SHOWN_MS / EVERY_MS)
  readonly #last = new Map<string, number>()

  read(tenants: readonly TenantRow[]): void {
    this.tails.retain(new Set(tenants.map((tenant) => tenant.name)))
    for (const { name, changes } of tenants) {
      if (changes === null) continue
      const before = this.#last.get(name)
      this.#last.set(name, changes)
      // Trimming makes a stream shorter; that is no negative growth.
      if (before !== undefined) this.tails.push(name, Math.max(0, changes - before))
    }
  }
}

export function Tenants({ params }: { params: Params }) {
  const resource = useResource<{ tenants: TenantRow[] }>(url(['tenants']), EVERY_MS)
  const growth = useRef(new Growth())
  useEffect(() => {
    if (resource.data) growth.current.read(resource.data.tenants)
  }, [resource.data])
  const { tenant, sort } = params
  return (
    <>
      {tenant && <TenantView key={tenant} tenant={tenant} onChanged={resource.reload} />}
      <Loaded resource={resource}>
        {({ tenants }) => (
          <Table
            label="Tenants"
            columns={columnsOf(params, growth.current.tails)}
            rows={tenants}
            rowKey={(one) => one.name}
            selected={tenant ?? null}
            order={sort}
            onOrder={(order) => setParams({ sort: order })}
            empty="There is no tenant. Create one with posduif tenant create."
          />
        )}
      </Loaded>
    </>
  )
}

function columnsOf(params: Params, tails: Tails): ColumnOf<TenantRow>[] {
  const numeric = (key: keyof TenantRow & string, head: string, link?: string): ColumnOf<TenantRow> => ({
    key,
    head,
    end: true,
    sort: (tenant) => tenant[key] as number | null,
    cell: (tenant) => {
      const value = tenant[key] as number | null
      return link && value ? <a href={href(link, { tenant: tenant.name })}>{number(value)}</a> : number(value)
    },
  })
  return [
    {
      key: 'name',
      head: 'Tenant',
      name: true,
      sort: (tenant) => tenant.name,
      cell: (tenant) => (
        <a href={href('tenants', { ...params, tenant: tenant.name })}>
          <Name text={tenant.name} />
        </a>
      ),
    },
    {
      key: 'state',
      head: 'State',
      sort: (tenant) => tenant.state,
      cell: (tenant) => (
        <>
          <State level={tenantLevel(tenant)}>{tenant.state}</State>
          {tenant.error && <span class="sub fail">{tenant.error}</span>}
        </>
      ),
    },
    {
      key: 'growth',
      head: 'Changes, 2 min',
      cell: (tenant) => (
        <Sparkline values={tails.of(tenant.name)} label={`Changes of ${tenant.name} since this page was opened`} />
      ),
    },
    numeric('changes', 'Changes'),
    numeric('shared', 'Shared'),
    numeric('quarantine', 'Quarantine', 'quarantine'),
    numeric('open_conflicts', 'Open conflicts', 'uploads'),
    numeric('users', 'Users'),
    numeric('devices', 'Devices', 'devices'),
  ]
}

export function tenantLevel(tenant: Pick<TenantRow, 'state' | 'error' | 'quarantine'>): Level | 'none' {
  if (tenant.error || tenant.state === 'schema missing') return 'fail'
  if (tenant.state === 'paused') return 'warn'
  return tenant.quarantine ? 'warn' : 'ok'
}
