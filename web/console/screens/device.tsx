import { url } from '../../api/client'
import type { DeviceDetail } from '../../api/types'
import { ActionButton } from '../../parts/action'
import { Ago, Time } from '../../parts/duration'
import { Facts } from '../../parts/facts'
import { detailText, duration, number } from '../../parts/format'
import { useResource } from '../../parts/hooks'
import { State } from '../../parts/level'
import { Loaded } from '../../parts/loaded'
import { setParams } from '../location'
import { appOf, behindRows, stateOf } from './devices'

/** One device: its sync, and what happened to it. */
export function DeviceView(props: { tenant: string; device: string; onChanged: () => void }) {
  const { tenant, device, onChanged } = props
  const resource = useResource<DeviceDetail>(url(['tenants', tenant, 'devices', device]), 2000)
  const changed = (): void => {
    resource.reload()
    onChanged()
  }
  return (
    <section class="panel detail" aria-label="Device">
      <div class="life-head">
        <h2>{resource.data?.name || 'Device'}</h2>
        <button type="button" onClick={() => setParams({ device: null })}>
          Close
        </button>
      </div>
      <Loaded resource={resource}>
        {(detail) => (
          <div class="split">
            <div>
              <Facts facts={factsOf(detail)} />
              {detail.sync?.error && <p class="error">{detail.sync.error}</p>}
              {detail.revoked_at === null && (
                <ActionButton
                  onDone={changed}
                  action={{
                    verb: 'Resync the device',
                    name: device,
                    noun: 'the id of the device',
                    path: url(['tenants', tenant, 'devices', device, 'resync']),
                    effect: `This and all other devices of ${detail.username} take a snapshot, pages receive a reset.`,
                  }}
                />
              )}
              {detail.revoked_at === null && (
                <ActionButton
                  onDone={changed}
                  action={{
                    verb: 'Revoke the device',
                    name: device,
                    noun: 'the id of the device',
                    path: url(['tenants', tenant, 'devices', device, 'revoke']),
                    danger: true,
                    effect:
                      'Its token and its event streams end at once. Later uploads from this device are refused, and ' +
                      'it must be enrolled again.',
                  }}
                />
              )}
            </div>
            <TimeLine detail={detail} />
          </div>
        )}
      </Loaded>
    </section>
  )
}

function factsOf(detail: DeviceDetail): [string, preact.ComponentChildren][] {
  const { level, word } = stateOf(detail)
  return [
    ['State', <State level={level}>{word}</State>],
    ['User', detail.username],
    ['Id', <code>{detail.device_id}</code>],
    ['Type', detail.device_type],
    ['App', appOf(detail)],
    ['Behind', duration(detail.behind?.seconds)],
    ['Rows behind', behindRows(detail)],
    ['Outbox', number(detail.sync?.pending_outgoing_count)],
    ['Acknowledged', detail.sync?.acknowledged ? <code>{detail.sync.acknowledged}</code> : null],
    ['Last sync', <Ago at={detail.sync?.last_sync_at} empty="never" />],
    ['Last seen', <Ago at={detail.last_seen_at} empty="never" />],
  ]
}

function TimeLine({ detail }: { detail: DeviceDetail }) {
  return (
    <div>
      <h3>Time line</h3>
      <ol class="timeline">
        {detail.history.map((entry) => (
          <li key={entry.id}>
            <Time at={entry.at} />
            <span>
              {entry.action.replaceAll('_', ' ')} <small>by {entry.actor}</small>
              {detailText(entry.detail) && <span class="sub">{detailText(entry.detail)}</span>}
            </span>
          </li>
        ))}
        <li>
          <Time at={detail.created_at} />
          <span>created</span>
        </li>
      </ol>
    </div>
  )
}
