import {
  addChange,
  addStep,
  addStops,
  PANES,
  type ChangeEvent,
  type Journey,
  type PaneName,
  type StepEvent,
  type Stops,
} from './journey'
import { Value } from './value'

export type Server = {
  readonly state: 'unknown' | 'up' | 'down'
  readonly pid: number | null
  readonly at: number
  /** How long it was down before it came up. */
  readonly downMs: number | null
}

const UNKNOWN: Server = { state: 'unknown', pid: null, at: 0, downMs: null }

/** Answers about the uploads of a pane, of a row and the time of a commit. */
type Question = (pane: PaneName, table: string, rowId: string, committedAt: number) => boolean

export type Panes = {
  readonly named: (device: string) => PaneName | null
  /** Whether the pane made the change that was committed at this time. */
  readonly isOwn: Question
  /** Whether the pane showed a change of its own instead, at this time or later. */
  readonly isWriting: Question
}

/** A row was painted in a pane. */
export type Painted = {
  readonly pane: PaneName
  readonly table: string
  readonly rowId: string
  readonly at: number
  readonly connectedSince: number | null
}

const AGAIN_MS = 2000
const PAINTED_MAX = 300
const SAMPLES_MAX = 1000

/** Clocks of one machine agree; this is the resolution of a commit's time. */
const SLACK_MS = 1

/** What the engine reports of each change, joined with what the panes have painted. */
export class Feed {
  readonly engine: Value<Server> = new Value(UNKNOWN)
  readonly redis: Value<Server> = new Value(UNKNOWN)
  readonly journeys: Value<readonly Journey[]> = new Value<readonly Journey[]>([])
  /** From commit to screen, in ms, of changes that the pane was connected for and did not make. */
  readonly samples: Value<readonly number[]> = new Value<readonly number[]>([])
  readonly #panes: Panes
  #painted: readonly Painted[] = []

  constructor(panes: Panes) {
    this.#panes = panes
  }

  /** Follows the stream of events; one that the server has refused is opened again. */
  connect(url: string): void {
    const source = new EventSource(url)
    const on = <T>(name: string, handle: (data: T) => void) =>
      source.addEventListener(name, ({ data }: MessageEvent<string>) => handle(JSON.parse(data) as T))
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) setTimeout(() => this.connect(url), AGAIN_MS)
    }
    on<ServerEvent>('engine', (event) => this.engine.set(serverOf(event)))
    on<ServerEvent>('redis', (event) => this.redis.set(serverOf(event)))
    on<ChangeEvent>('change', (event) => this.change(event))
    on<StepEvent>('step', (event) => this.step(event))
  }

  change(event: ChangeEvent): void {
    const before = this.journeys.getSnapshot()
    this.journeys.set(addChange(before, event))
    const journey = this.journeys.getSnapshot().at(-1)
    if (journey?.id !== event.id || this.journeys.getSnapshot() === before) return
    // A pane may have painted the row before the event came.
    for (const pane of PANES) {
      const { table, rowId, committedAt } = journey
      const painted = this.#painted.find((each) => each.pane === pane && isOf(each, journey))
      const isOwn = committedAt !== null && this.#panes.isOwn(pane, table, rowId, committedAt)
      if (isOwn) this.#stop(journey, pane, { isOwn })
      else if (painted) this.#arrived(journey, painted)
    }
  }

  step(event: StepEvent): void {
    this.journeys.update((journeys) => addStep(journeys, event, this.#panes.named))
  }

  painted(painted: Painted): void {
    this.#painted = [...this.#painted, painted].slice(-PAINTED_MAX)
    for (const journey of this.journeys.getSnapshot()) {
      const stops = journey.panes[painted.pane]
      if (stops.screen === undefined && !stops.isOwn && isOf(painted, journey)) this.#arrived(journey, painted)
    }
  }

  #arrived(journey: Journey, { pane, at, connectedSince }: Painted): void {
    if (journey.committedAt === null) return
    const screen = Math.max(at - journey.committedAt, 0)
    this.#stop(journey, pane, { screen })
    // A pane that was away shows the change when it returns, which measures its absence.
    if (connectedSince === null || connectedSince > journey.committedAt) return
    if (this.#panes.isWriting(pane, journey.table, journey.rowId, journey.committedAt)) return
    this.samples.update((samples) => [...samples, screen].slice(-SAMPLES_MAX))
  }

  #stop(journey: Journey, pane: PaneName, stops: Stops): void {
    this.journeys.update((journeys) => addStops(journeys, journey.id, pane, stops))
  }
}

function isOf(painted: Painted, journey: Journey): boolean {
  if (painted.table !== journey.table || painted.rowId !== journey.rowId || journey.committedAt === null) return false
  return painted.at >= journey.committedAt - SLACK_MS
}

type ServerEvent = { state: string; pid?: number; at?: number; down_ms?: number | null; ms?: number | null }

function serverOf({ state, pid, at, down_ms: downMs, ms }: ServerEvent): Server {
  return {
    state: state === 'up' ? 'up' : 'down',
    pid: pid ?? null,
    at: at ?? Date.now(),
    downMs: downMs ?? ms ?? null,
  }
}
