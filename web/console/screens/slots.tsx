import { figures } from '../../api/figures'
import { url } from '../../api/client'
import type { Level, SlotReport, Slots as SlotList } from '../../api/types'
import { ActionButton } from '../../parts/action'
import { Command } from '../../parts/command'
import type { Action } from '../../parts/confirm-name'
import { Countdown } from '../../parts/duration'
import { bytes, duration, rate } from '../../parts/format'
import { useResource, useStore } from '../../parts/hooks'
import { State } from '../../parts/level'
import { Loaded } from '../../parts/loaded'
import { Meter } from '../../parts/meter'
import { Name } from '../../parts/name'
import { Sparkline } from '../../parts/sparkline'
import { Table, type ColumnOf } from '../../parts/table'
import { setParams } from '../location'
import type { Params } from '../routes'

/** A slot that is lost within this time is a failure, not a warning, as in the verdict of the engine. */
const SOON_SECONDS = 3600

export function Slots({ params }: { params: Params }) {
  // The small lines come with the figures.
  useStore(figures.state)
  // The engine measures rates for a second before it answers.
  const resource = useResource<SlotList>(url(['slots']), 1000)
  return (
    <Loaded resource={resource}>
      {({ slots, wal_position, keep_bytes }) => (
        <>
          <p class="lead">
            End of the log <code>{wal_position}</code>.{' '}
            {keep_bytes === null
              ? 'Slots may retain WAL without bound: max_slot_wal_keep_size is not set.'
              : `A slot is lost when it retains more than ${bytes(keep_bytes)}.`}
          </p>
          <Commands slots={slots} />
          <Table
            label="Replication slots"
            columns={columnsOf(keep_bytes, resource.reload)}
            rows={slots}
            rowKey={(slot) => slot.name}
            order={params['sort'] ?? '-retained'}
            onOrder={(sort) => setParams({ sort })}
            empty="The server has no replication slots."
          />
        </>
      )}
    </Loaded>
  )
}

function columnsOf(keep: number | null, reload: () => void): ColumnOf<SlotReport>[] {
  return [
    {
      key: 'name',
      head: 'Slot',
      name: true,
      sort: (slot) => slot.name,
      cell: (slot) => (
        <>
          <Name text={slot.name} />
          {slot.ours && <span class="tag">ours</span>}
          <span class="sub">
            {[slot.slot_type, slot.plugin, slot.database].filter(Boolean).join(' · ')}
            {slot.temporary && ' · temporary'}
            {slot.failover && ' · failover'}
          </span>
        </>
      ),
    },
    {
      key: 'verdict',
      head: 'Verdict',
      sort: (slot) => slot.verdict,
      cell: (slot) => (
        <>
          <State level={levelOf(slot)}>{slot.verdict}</State>
          <span class="sub">
            {slot.invalidation_reason ? `invalidated: ${slot.invalidation_reason}` : (slot.wal_status ?? '–')}
          </span>
        </>
      ),
    },
    {
      key: 'retained',
      head: 'WAL retained',
      end: true,
      sort: (slot) => slot.retained_wal_bytes,
      cell: (slot) => <Retained slot={slot} keep={keep} />,
    },
    {
      key: 'tail',
      head: '2 minutes',
      cell: (slot) => (
        <>
          <Sparkline values={figures.slots.of(slot.name)} label={`WAL retained by ${slot.name}`} />
          <span class="sub">{growthText(figures.slots.of(slot.name))}</span>
        </>
      ),
    },
    {
      key: 'lost',
      head: 'Lost',
      sort: (slot) => slot.lost_in_seconds,
      cell: (slot) =>
        slot.lost_in_seconds === null ? (
          slot.lost
        ) : (
          <>
            <strong class={slot.lost_in_seconds < SOON_SECONDS ? 'fail' : 'warn'}>
              in <Countdown seconds={slot.lost_in_seconds} />
            </strong>
            <span class="sub">at {rate(slot.wal_bytes_per_second)}</span>
          </>
        ),
    },
    {
      key: 'lag',
      head: 'Behind',
      end: true,
      sort: (slot) => slot.lag_bytes,
      cell: (slot) => (
        <>
          {bytes(slot.lag_bytes)}
          {slot.lag_seconds !== null && <span class="sub">{duration(slot.lag_seconds)}</span>}
        </>
      ),
    },
    { key: 'reader', head: 'Reader', cell: readerOf },
    {
      key: 'action',
      head: 'Action',
      cell: (slot) =>
        slot.active || slot.ours ? (
          <span class="none">–</span>
        ) : (
          <ActionButton label="Drop" onDone={reload} action={dropOf(slot)} />
        ),
    },
  ]
}

function dropOf(slot: SlotReport): Action {
  return {
    verb: 'Drop the slot',
    name: slot.name,
    noun: 'the name of the slot',
    path: url(['slots', slot.name, 'drop']),
    danger: true,
    effect: (
      <>
        The {bytes(slot.retained_wal_bytes)} of WAL that the slot retains are removed. Its reader cannot continue: it
        needs a new slot and a new copy of its data.
      </>
    ),
  }
}

/** Whether the retained WAL grows, over the values of one second each. */
export function growthText(values: readonly number[]): string {
  const [first, last] = [values[0], values.at(-1)]
  if (first === undefined || last === undefined || values.length < 5) return ''
  const perSecond = (last - first) / (values.length - 1)
  if (Math.abs(perSecond) < 1024) return 'steady'
  return perSecond > 0 ? `grows ${rate(perSecond)}` : `shrinks ${rate(-perSecond)}`
}

/** What to run about each slot, if anything. */
function Commands({ slots }: { slots: SlotReport[] }) {
  const advised = slots.filter((slot) => slot.command !== null)
  if (advised.length === 0) return null
  return (
    <ul class="problems" aria-label="Advice">
      {advised.map((slot) => (
        <li key={slot.name}>
          <State level={levelOf(slot)}>
            {slot.name}: {slot.verdict}
          </State>
          <Command text={slot.command ?? ''} />
        </li>
      ))}
    </ul>
  )
}

export function shareText(share: number): string {
  return share > 0 && share < 0.01 ? '< 1 %' : `${Math.round(share * 100)} %`
}

function Retained({ slot, keep }: { slot: SlotReport; keep: number | null }) {
  const { retained_wal_bytes: retained, name } = slot
  if (retained === null) return <>–</>
  return (
    <>
      {bytes(retained)}
      {keep !== null && <span class="sub">{shareText(retained / keep)} of the bound</span>}
      {keep !== null && <Meter value={retained} max={keep} label={`WAL retained by ${name}`} level={levelOf(slot)} />}
    </>
  )
}

function readerOf(slot: SlotReport) {
  if (slot.reader) {
    const { pid, application, address } = slot.reader
    return (
      <>
        <span title={`process ${pid}`}>{application || `process ${pid}`}</span>
        <span class="sub">{address ?? 'this machine'}</span>
      </>
    )
  }
  return slot.inactive_seconds === null ? 'none' : `none for ${duration(slot.inactive_seconds)}`
}

export function levelOf(slot: SlotReport): Level {
  if (slot.verdict === 'lost') return 'fail'
  if (slot.lost_in_seconds !== null && slot.lost_in_seconds < SOON_SECONDS) return 'fail'
  if (slot.verdict === 'in use' || slot.verdict === 'synced') return slot.lost_in_seconds === null ? 'ok' : 'warn'
  return 'warn'
}
