import { useEffect } from 'preact/hooks'
import { url } from '../api/client'
import type { TenantRow } from '../api/types'
import { useResource } from '../parts/hooks'
import { setParams } from './location'
import type { Params } from './routes'

/** The tenant of the address, or the first one that there is. `null` until the list is known. */
export function useTenant(params: Params): { tenant: string | null; tenants: string[]; isEmpty: boolean } {
  const { data } = useResource<{ tenants: TenantRow[] }>(url(['tenants']), null)
  const tenants = data?.tenants.map((one) => one.name) ?? []
  const tenant = params['tenant'] ?? tenants[0] ?? null
  useEffect(() => {
    // The address names what is shown, so that it can be sent to a colleague.
    if (params['tenant'] === undefined && tenant !== null) setParams({ tenant })
  }, [tenant, params['tenant']])
  return { tenant, tenants, isEmpty: data !== null && tenants.length === 0 }
}

export function TenantPicker(props: { tenants: string[]; value: string | null; all?: boolean }) {
  const { tenants, value, all = false } = props
  const names = value !== null && value !== '' && !tenants.includes(value) ? [value, ...tenants] : tenants
  return (
    <label>
      Tenant
      <select
        value={value ?? ''}
        onChange={(event) => setParams({ tenant: event.currentTarget.value || null, device: null, before: null })}
      >
        {all && <option value="">all</option>}
        {names.map((name) => (
          <option key={name} value={name}>
            {name}
          </option>
        ))}
      </select>
    </label>
  )
}
