export type PaneName = 'joe' | 'bob'

export const PANES: readonly PaneName[] = ['joe', 'bob']

/** When a change was where, in ms since its commit. */
export type Stops = {
  readonly notified?: number
  readonly delivered?: number
  readonly acknowledged?: number
  /** The row was painted in the pane. */
  readonly screen?: number
  /** The pane made the change itself, and has shown it since. */
  readonly isOwn?: true
}

export type Journey = {
  readonly id: string
  readonly table: string
  readonly op: string
  readonly rowId: string
  readonly committedAt: number | null
  readonly publishedMs: number | null
  readonly durableMs: number | null
  readonly columns: readonly string[]
  readonly panes: Readonly<Record<PaneName, Stops>>
}

export type ChangeEvent = {
  readonly id: string
  readonly table: string
  readonly op: string
  readonly row_id: string
  readonly committed_at: number | null
  readonly columns: readonly string[]
}

export type StepEvent = {
  readonly id: string
  readonly step: 'published' | 'durable' | 'notified' | 'delivered' | 'acknowledged'
  readonly device: string | null
  readonly ms: number
}

/** Tables that the app shows; others of the tenant, such as devices, have rows of their own that change. */
const SHOWN_TABLES: readonly string[] = ['tasks', 'messages', 'lists', 'list_members']

const JOURNEYS_MAX = 60

/** Newest last. A change that is known already is not added again. */
export function addChange(journeys: readonly Journey[], change: ChangeEvent): readonly Journey[] {
  if (!SHOWN_TABLES.includes(change.table) || journeys.some(({ id }) => id === change.id)) return journeys
  const journey: Journey = {
    id: change.id,
    table: change.table,
    op: change.op,
    rowId: change.row_id,
    committedAt: change.committed_at,
    publishedMs: null,
    durableMs: null,
    columns: change.columns,
    panes: { joe: {}, bob: {} },
  }
  return [...journeys, journey].slice(-JOURNEYS_MAX)
}

export function addStep(
  journeys: readonly Journey[],
  step: StepEvent,
  paneOf: (device: string) => PaneName | null,
): readonly Journey[] {
  // A new engine reports again what the former one has done.
  const { ms } = step
  if (step.step === 'published')
    return change(journeys, step.id, (journey) => ({ ...journey, publishedMs: journey.publishedMs ?? ms }))
  if (step.step === 'durable')
    return change(journeys, step.id, (journey) => ({ ...journey, durableMs: journey.durableMs ?? ms }))
  const pane = step.device === null ? null : paneOf(step.device)
  if (pane === null) return journeys
  return addStops(journeys, step.id, pane, { [step.step]: step.ms })
}

export function addStops(
  journeys: readonly Journey[],
  id: string,
  pane: PaneName,
  stops: Stops,
): readonly Journey[] {
  return change(journeys, id, (journey) => withStops(journey, pane, stops))
}

type Print = (ms: number | null | undefined) => string

/** When the change was in Redis, as a text. */
export function published({ publishedMs, panes: { joe, bob } }: Journey, print: Print): string {
  return bounded(publishedMs, [joe.notified, bob.notified, joe.delivered, bob.delivered, joe.screen, bob.screen], print)
}

/** When the device had the change, as a text. */
export function delivered(stops: Stops, print: Print): string {
  return bounded(stops.delivered, [stops.screen], print)
}

/**
 * The engine reports a stop when it notices it. A stop that comes after it may have been noticed before: then the text
 * has that one as its bound.
 */
function bounded(value: number | null | undefined, later: readonly (number | undefined)[], print: Print): string {
  const bound = Math.min(...later.filter((ms) => ms !== undefined))
  return value !== null && value !== undefined && bound < value ? `≤ ${print(bound)}` : print(value)
}

function withStops(journey: Journey, pane: PaneName, stops: Stops): Journey {
  return { ...journey, panes: { ...journey.panes, [pane]: { ...journey.panes[pane], ...stops } } }
}

function change(
  journeys: readonly Journey[],
  id: string,
  update: (journey: Journey) => Journey,
): readonly Journey[] {
  const place = journeys.findIndex((journey) => journey.id === id)
  const journey = journeys[place]
  if (!journey) return journeys
  const next = update(journey)
  return JSON.stringify(next) === JSON.stringify(journey) ? journeys : journeys.with(place, next)
}

/** The value below which this share of the values lies; null without any. */
export function percentile(values: readonly number[], share: number): number | null {
  const sorted = [...values].sort((one, other) => one - other)
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? null
}
