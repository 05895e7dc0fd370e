import { url } from '../../api/client'
import type { Group, StreamReport, Streams as StreamList, TenantStreams } from '../../api/types'
import { Time } from '../../parts/duration'
import { bytes, count, duration, number, shortId } from '../../parts/format'
import { useResource } from '../../parts/hooks'
import { State } from '../../parts/level'
import { Loaded } from '../../parts/loaded'
import { Meter } from '../../parts/meter'
import { Table, type ColumnOf } from '../../parts/table'
import type { Params } from '../routes'
import { TenantPicker, useTenant } from '../tenant-picker'

export function Streams({ params }: { params: Params }) {
  const { tenant, tenants } = useTenant(params)
  const streams = useResource<StreamList>(tenant === null ? null : url(['streams'], { tenant }), 2000)
  const groups = useResource<{ groups: Group[] }>(tenant === null ? null : url(['tenants', tenant, 'groups']), 2000)
  return (
    <>
      <div class="filters">
        <TenantPicker tenants={tenants} value={tenant} />
      </div>
      <Loaded resource={streams}>
        {({ epoch, position, live, tenants: found }) => (
          <>
            <p class="lead">
              Epoch <code>{epoch ?? '–'}</code>, last entry <code>{position ?? '–'}</code>
            </p>
            {found.map((one) => (
              <OneTenant key={one.tenant} streams={one} live={live} />
            ))}
          </>
        )}
      </Loaded>
      <h2>Consumer groups of {tenant}/changes</h2>
      <Loaded resource={groups}>
        {({ groups: found }) => (
          <Table
            label="Consumer groups"
            columns={GROUPS}
            rows={found}
            rowKey={(group) => group.name}
            empty="No other service reads changes. Create a group with posduif stream groups create."
          />
        )}
      </Loaded>
    </>
  )
}

function OneTenant({ streams, live }: { streams: TenantStreams; live: StreamReport | null }) {
  const { inboxes } = streams
  const rows = [streams.changes, streams.shared, streams.push, streams.quarantine, live].filter((one) => one !== null)
  const most = Math.max(1, ...rows.map((row) => row.memory_bytes), inboxes.memory_bytes)
  return (
    <>
      {streams.error && <p class="error">{streams.error}</p>}
      <p class="lead">
        {bytes(streams.memory_bytes)} of {bytes(streams.budget_bytes)}
        {streams.exceeded && (
          <strong class="fail">: beyond the budget, so that messages and uploads are refused until it is trimmed</strong>
        )}
      </p>
      {streams.stopped.map((one) => (
        <p key={one.stream} class="error">
          {one.stream} accepts no entries: {one.cause}
        </p>
      ))}
      <Table
        label={`Streams of ${streams.tenant}`}
        columns={streamColumns(most)}
        rows={rows}
        rowKey={(row) => row.stream}
        empty="The tenant has no streams."
      />
      {inboxes.count > 0 && (
        <p class="lead">
          {count(inboxes.count, 'inbox', 'inboxes')} with {number(inboxes.entries)} entries,{' '}
          {bytes(inboxes.memory_bytes)}
          {inboxes.unusable > 0 && <strong class="fail">, {number(inboxes.unusable)} unusable</strong>}
          {inboxes.longest && (
            <>
              . The longest has {number(inboxes.longest.length)} entries and belongs to{' '}
              <code title={inboxes.longest.user_id}>{shortId(inboxes.longest.user_id)}</code>
            </>
          )}
          .
        </p>
      )}
    </>
  )
}

function streamColumns(most: number): ColumnOf<StreamReport>[] {
  return [
    {
      key: 'stream',
      head: 'Stream',
      cell: (row) => (
        <>
          {row.stream}
          <span class="sub mono">{row.key}</span>
        </>
      ),
    },
    {
      key: 'state',
      head: 'State',
      cell: (row) =>
        row.stopped ? (
          <State level="fail">stopped: {row.stopped}</State>
        ) : row.type === 'stream' ? (
          <State level="ok">in order</State>
        ) : row.type === 'none' ? (
          <State level="none">no entries yet</State>
        ) : (
          <State level="fail">wrong type: {row.type}</State>
        ),
    },
    { key: 'length', head: 'Entries', end: true, cell: (row) => number(row.length) },
    {
      key: 'memory',
      head: 'Memory',
      end: true,
      cell: (row) => (
        <>
          {bytes(row.memory_bytes)}
          <Meter value={row.memory_bytes} max={row.bytes_max ?? most} label={`Memory of ${row.stream}`} />
          {row.bytes_max !== null && <span class="sub">of {bytes(row.bytes_max)}</span>}
        </>
      ),
    },
    { key: 'first', head: 'First commit', cell: (row) => <MarkCell mark={row.first} /> },
    { key: 'last', head: 'Last commit', cell: (row) => <MarkCell mark={row.last} /> },
    { key: 'trimmed', head: 'Trimmed below', cell: (row) => <code>{row.trimmed_below ?? '–'}</code> },
  ]
}

function MarkCell({ mark }: { mark: StreamReport['first'] }) {
  if (mark === null) return <span class="none">–</span>
  return (
    <>
      <Time at={mark.time} />
      <span class="sub mono">{mark.id}</span>
    </>
  )
}

const GROUPS: ColumnOf<Group>[] = [
  { key: 'name', head: 'Group', cell: (group) => group.name },
  {
    key: 'state',
    head: 'State',
    cell: (group) =>
      group.missed === 'none' ? (
        <State level="ok">in order</State>
      ) : (
        <State level="fail">
          missed {group.missed === 'some' ? 'some entries' : count(group.missed, 'entry', 'entries')}
        </State>
      ),
  },
  {
    key: 'lag',
    head: 'Entries behind',
    end: true,
    cell: (group) => `${group.lag_at_least ? 'at least ' : ''}${number(group.lag)}`,
  },
  { key: 'pending', head: 'Pending', end: true, cell: (group) => number(group.pending) },
  {
    key: 'oldest',
    head: 'Oldest pending',
    cell: ({ oldest_pending: oldest }) =>
      oldest === null ? (
        <span class="none">–</span>
      ) : (
        <>
          {duration(oldest.idle_ms / 1000)} with {oldest.consumer}
          <span class="sub mono">
            {oldest.id} · {count(oldest.deliveries, 'delivery', 'deliveries')}
          </span>
        </>
      ),
  },
  { key: 'consumers', head: 'Consumers', end: true, cell: (group) => number(group.consumers) },
  { key: 'last', head: 'Last delivered', cell: (group) => <code>{group.last_delivered}</code> },
]
