import { useEffect, useMemo, useRef, useState } from 'preact/hooks'
import { url } from '../../api/client'
import { Store } from '../../api/store'
import { followTrace, TRACE_MAX, type TraceFilter, type TraceItem, type TraceState } from '../../api/trace'
import type { Level, TenantRow, TraceChange, TraceStep } from '../../api/types'
import { Field } from '../../parts/field'
import { clockTime, count, shortId } from '../../parts/format'
import { useResource, useStore } from '../../parts/hooks'
import { State } from '../../parts/level'
import { setParams } from '../location'
import type { Params } from '../routes'
import { TenantPicker } from '../tenant-picker'
import { RowLife, sinceCommit } from './row-life'

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i
const OPS = ['insert', 'update', 'delete']
const STEPS = ['published', 'durable', 'notified', 'delivered', 'acknowledged'] as const
const NOTHING = new Store<TraceState>({ link: 'connecting', items: [], received: 0 })

export function Trace({ params }: { params: Params }) {
  const { tenant = '', table = '', user = '', op = '', row = '' } = params
  const { data } = useResource<{ tenants: TenantRow[] }>(url(['tenants']), null)
  const isUserValid = user === '' || UUID.test(user)
  const [follow, setFollow] = useState<ReturnType<typeof followTrace> | null>(null)
  const [paused, setPaused] = useState<readonly TraceItem[] | null>(null)
  const [chosen, setChosen] = useState<number | null>(null)
  useEffect(() => {
    if (!isUserValid) return
    const filter: TraceFilter = { tenant, table, user, op, row }
    const next = followTrace(filter)
    setFollow(next)
    setPaused(null)
    setChosen(null)
    return next.close
  }, [tenant, table, user, op, row])
  const state = useStore((isUserValid ? follow?.state : null) ?? NOTHING)
  const items = paused ?? state.items
  const tables = useTables(items)
  const item = items.find((one) => one.key === chosen)
  return (
    <>
      <div class="filters">
        <TenantPicker tenants={data?.tenants.map((one) => one.name) ?? []} value={tenant} all />
        <Field label="Table" value={table} list={tables} onChange={(value) => setParams({ table: value || null })} />
        <Field label="User id" value={user} onChange={(value) => setParams({ user: value || null })} />
        <label>
          Op
          <select value={op} onChange={(event) => setParams({ op: event.currentTarget.value || null })}>
            <option value="">all</option>
            {OPS.map((one) => (
              <option key={one} value={one}>
                {one}
              </option>
            ))}
          </select>
        </label>
        <Field key={row} label="Row" value={row} onChange={(value) => setParams({ row: value || null })} />
        <button
          type="button"
          aria-pressed={paused !== null}
          onClick={() => setPaused((before) => (before === null ? state.items : null))}
        >
          {paused === null ? 'Pause' : 'Continue'}
        </button>
        <button type="button" onClick={() => follow?.clear()}>
          Clear
        </button>
        <span class="link">
          <State level={linkLevel(paused !== null, state.link)}>
            {paused !== null ? 'paused' : state.link === 'open' ? 'live' : state.link}
          </State>
        </span>
      </div>
      {!isUserValid && (
        <p class="error" role="alert">
          The id of a user must be a UUID, as in the column id of the table users.
        </p>
      )}
      {item?.kind === 'change' && <RowLife change={item.change} steps={item.steps} onClose={() => setChosen(null)} />}
      <List items={items} chosen={chosen} onChoose={setChosen} withTenant={tenant === ''} />
      <p class="sub">
        {count(state.received, 'change')} received; the newest {TRACE_MAX} are shown. Milliseconds count from the commit.
      </p>
    </>
  )
}

function linkLevel(isPaused: boolean, link: TraceState['link']): Level | 'none' {
  if (link === 'broken') return 'fail'
  return isPaused || link === 'connecting' ? 'none' : 'ok'
}

function List(props: {
  items: readonly TraceItem[]
  chosen: number | null
  onChoose: (key: number) => void
  withTenant: boolean
}) {
  const { items, chosen, onChoose, withTenant } = props
  if (items.length === 0) return <p class="empty">No change yet. Changes appear here as they are published.</p>
  return (
    <div class="scroll" role="region" aria-label="Changes" tabIndex={0}>
      <table class="trace">
        <thead>
          <tr>
            <th scope="col">Committed</th>
            {withTenant && <th scope="col">Tenant</th>}
            <th scope="col">Op</th>
            <th scope="col">Table</th>
            <th scope="col">Row</th>
            <th scope="col" class="columns">
              Columns
            </th>
            {STEPS.map((step) => (
              <th key={step} scope="col" class="end">
                {step}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {items.map((item) =>
            item.kind === 'gap' ? (
              <tr key={item.key} class="gap">
                <td colSpan={11}>
                  <State level="warn">
                    {item.stream === null ? 'Steps' : `Entries of ${item.stream}`} were missed here
                  </State>
                </td>
              </tr>
            ) : (
              <ChangeRow
                key={item.key}
                item={item}
                isChosen={item.key === chosen}
                onChoose={onChoose}
                withTenant={withTenant}
              />
            ),
          )}
        </tbody>
      </table>
    </div>
  )
}

function ChangeRow(props: {
  item: Extract<TraceItem, { kind: 'change' }>
  isChosen: boolean
  onChoose: (key: number) => void
  withTenant: boolean
}) {
  const { item, isChosen, onChoose, withTenant } = props
  const { change, steps } = item
  return (
    <tr class={isChosen ? 'selected' : undefined}>
      <th scope="row">
        <button type="button" class="text" aria-expanded={isChosen} onClick={() => onChoose(item.key)}>
          {committedText(change)}
        </button>
      </th>
      {withTenant && <td>{change.tenant}</td>}
      <td>
        <span class={`op ${change.op}`}>{change.op}</span>
      </td>
      <td>{change.table}</td>
      <td>
        {change.row_id !== null && (
          <button
            type="button"
            class="text mono"
            title={`Follow only ${change.row_id}`}
            onClick={() => setParams({ row: change.row_id, tenant: change.tenant, table: change.table })}
          >
            {shortId(change.row_id)}
          </button>
        )}
      </td>
      <td class="columns" title={change.columns.join(', ')}>
        {change.columns.join(', ')}
      </td>
      {STEPS.map((step) => (
        <td key={step} class="end">
          <StepCell steps={steps.filter((one) => one.step === step)} />
        </td>
      ))}
    </tr>
  )
}

/** The last of the devices, and how many they are. */
function StepCell({ steps }: { steps: TraceStep[] }) {
  if (steps.length === 0) return <span class="none">–</span>
  const known = steps.flatMap((step) => step.ms ?? [])
  return (
    <>
      {sinceCommit(known.length > 0 ? Math.max(...known) : null)}
      {steps.length > 1 && <small> ×{steps.length}</small>}
    </>
  )
}

function committedText(change: TraceChange): string {
  return change.committed_at === null ? change.commit_lsn : clockTime(change.committed_at, true)
}

/** Tables seen so far, for the field's list. */
function useTables(items: readonly TraceItem[]): string[] {
  const seen = useRef(new Set<string>())
  return useMemo(() => {
    for (const item of items) if (item.kind === 'change') seen.current.add(item.change.table)
    return [...seen.current].sort()
  }, [items])
}
