import { clock as systemClock, type Clock } from '../../src/clock.js'
import { createClient, table, type Client, type ClientOptions, type Status } from '../../src/index.js'
import { memory } from '../../src/memory/index.js'

export type Task = {
  readonly id: string
  readonly title: string
  readonly done: boolean
  readonly version: number
  readonly owner_id: string
  readonly assignee_id: string | null
}

const tables = { tasks: table<Task>() }

export type TestClient = Client<typeof tables>

/** Of requests, streams and logins: a slow machine must not reach them. */
const TIMEOUTS = new Set([30_000, 50_000, 60_000, 300_000])

/** Delays of repeats are a fiftieth; timeouts are real. */
export const fastClock: Clock = {
  ...systemClock,
  schedule: (run, ms) => systemClock.schedule(run, TIMEOUTS.has(ms) ? ms : ms / 50),
}

export function client(url: string, options: Partial<ClientOptions<typeof tables>> = {}): TestClient {
  return createClient({ url, store: memory(), tables, environment: { clock: fastClock }, ...options })
}

/** Waits until a condition of what a subscription reports holds. */
export function until(
  source: { subscribe(listener: () => void): () => void },
  holds: () => boolean,
  what: string,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      unsubscribe()
      reject(new Error(`not within 30 s: ${what}`))
    }, 30_000)
    const check = () => {
      if (!holds()) return
      clearTimeout(timer)
      unsubscribe()
      resolve()
    }
    const unsubscribe = source.subscribe(check)
    queueMicrotask(check)
  })
}

export function untilStatus(of: Pick<TestClient, 'status'>, holds: (status: Status) => boolean, what: string): Promise<void> {
  return until(of.status, () => holds(of.status.getSnapshot()), what)
}

/** Waits until the titles of a client's tasks, in their order, are these. */
export async function untilTitles(of: TestClient, ...titles: string[]): Promise<void> {
  const query = of.tasks.query({ orderBy: 'title' })
  // A query that has not been read yet shows nothing.
  const shown = () => {
    const { rows, phase } = query.getSnapshot()
    return phase === 'loading' ? null : rows.map(({ title }) => title)
  }
  await until(query, () => JSON.stringify(shown()) === JSON.stringify(titles), `the titles ${titles.join(', ')}`)
}

export const bob = { username: 'bob', password: 'posduif-demo', tenant: 'demo' }
export const jane = { username: 'jane', password: 'posduif-demo', tenant: 'demo' }
