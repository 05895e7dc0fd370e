import { useState } from 'preact/hooks'
import { url } from '../../api/client'
import { clock } from '../../api/clock'
import type { Device, Devices as DeviceList, Level } from '../../api/types'
import { Ago } from '../../parts/duration'
import { Field } from '../../parts/field'
import { duration, instant, number, shortId } from '../../parts/format'
import { useResource } from '../../parts/hooks'
import { State } from '../../parts/level'
import { Loaded } from '../../parts/loaded'
import { More } from '../../parts/more'
import { Table, type ColumnOf } from '../../parts/table'
import { href, setParams } from '../location'
import type { Params } from '../routes'
import { TenantPicker, useTenant } from '../tenant-picker'
import { DeviceView } from './device'

const PAGE = 50

/** A device that was seen within this time is online, as on the screen Now. */
const ONLINE_MS = 120_000

export function Devices({ params }: { params: Params }) {
  const { tenant, tenants, isEmpty } = useTenant(params)
  const { user = '', all, device, sort } = params
  const [limit, setLimit] = useState(PAGE)
  const path = tenant === null ? null : url(['tenants', tenant, 'devices'], { limit, user, all: all === 'true' })
  const resource = useResource<DeviceList>(path, 2000)
  if (isEmpty) return <p class="empty">There is no tenant.</p>
  return (
    <>
      <div class="filters">
        <TenantPicker tenants={tenants} value={tenant} />
        <Field label="User" value={user} onChange={(value) => setParams({ user: value || null })} />
        <label class="check">
          <input
            type="checkbox"
            checked={all === 'true'}
            onChange={(event) => setParams({ all: event.currentTarget.checked ? 'true' : null })}
          />
          Include revoked devices
        </label>
      </div>
      {tenant !== null && device && (
        <DeviceView key={device} tenant={tenant} device={device} onChanged={resource.reload} />
      )}
      <Loaded resource={resource}>
        {({ devices, has_more }) => (
          <>
            <Table
              label="Devices"
              columns={columnsOf(params)}
              rows={devices}
              rowKey={(one) => one.device_id}
              selected={device ?? null}
              order={sort}
              onOrder={(order) => setParams({ sort: order })}
              empty="No device is enrolled that fits the filters."
            />
            <More hasMore={has_more} onMore={() => setLimit(limit + PAGE)} />
          </>
        )}
      </Loaded>
    </>
  )
}

function columnsOf(params: Params): ColumnOf<Device>[] {
  return [
    {
      key: 'device',
      head: 'Device',
      name: true,
      sort: (device) => device.name ?? device.device_id,
      cell: (device) => (
        <>
          <a href={href('devices', { ...params, device: device.device_id })}>
            {device.name || shortId(device.device_id)}
          </a>
          <span class="sub">
            {device.device_type} · <span title={device.device_id}>{shortId(device.device_id)}</span>
          </span>
        </>
      ),
    },
    { key: 'user', head: 'User', name: true, sort: (device) => device.username, cell: (device) => device.username },
    {
      key: 'state',
      head: 'State',
      sort: (device) => stateOf(device).word,
      cell: (device) => <State level={stateOf(device).level}>{stateOf(device).word}</State>,
    },
    {
      key: 'seconds',
      head: 'Behind',
      end: true,
      sort: (device) => device.behind?.seconds ?? null,
      cell: (device) => duration(device.behind?.seconds),
    },
    {
      key: 'rows',
      head: 'Rows behind',
      end: true,
      sort: (device) => device.behind?.rows ?? null,
      cell: behindRows,
    },
    {
      key: 'outbox',
      head: 'Outbox',
      end: true,
      sort: (device) => device.sync?.pending_outgoing_count ?? null,
      cell: (device) => number(device.sync?.pending_outgoing_count),
    },
    {
      key: 'seen',
      head: 'Last seen',
      sort: (device) => device.last_seen_at,
      cell: (device) => (
        <>
          <Ago at={device.last_seen_at} empty="never" />
          <span class="sub">
            synced <Ago at={device.sync?.last_sync_at} empty="never" />
          </span>
        </>
      ),
    },
    { key: 'app', head: 'App', cell: (device) => appOf(device) ?? <span class="none">–</span> },
  ]
}

export function behindRows({ behind }: Device): string {
  if (behind?.rows == null) return '–'
  return `${behind.at_least ? 'at least ' : ''}${number(behind.rows)}`
}

export function stateOf(device: Device): { level: Level | 'none'; word: string } {
  if (device.revoked_at !== null) return { level: 'none', word: 'revoked' }
  if (device.sync?.error) return { level: 'fail', word: device.sync.status }
  const status = device.sync?.status ?? 'state unknown'
  return isOnline(device) ? { level: 'ok', word: `online, ${status}` } : { level: 'none', word: `offline, ${status}` }
}

/** The engine notes sync and open streams of a device every some seconds. */
function isOnline({ last_seen_at: seen }: Device): boolean {
  const at = instant(seen)
  return at !== null && clock.wall() - at < ONLINE_MS
}

/** What the app says of itself, as far as it does. */
export function appOf({ device_info: info }: Device): string | null {
  if (info === null) return null
  const parts = ['app_version', 'app', 'os', 'os_version', 'platform', 'model'].map((name) => info[name])
  const texts = parts.filter((part) => typeof part === 'string')
  return texts.length > 0 ? texts.join(' · ') : null
}
