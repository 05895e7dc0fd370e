// The page of the browser tests: a client on IndexedDB, and React on it. The tests call what is on `window`.
import { createElement, StrictMode } from 'react'
import { createRoot } from 'react-dom/client'
import { createClient, table, type Conflict } from '../../src/index.js'
import { indexeddb } from '../../src/indexeddb/index.js'
import { useQuery, useStatus, useWrite } from '../../src/react/index.js'

type Task = { readonly id: string; readonly title: string; readonly done: boolean; readonly version: number }

const parameters = new URLSearchParams(location.search)
const client = createClient({
  url: location.origin,
  store: indexeddb('app'),
  tables: { tasks: table<Task>() },
  live: (parameters.get('live') ?? 'auto') as 'auto',
  onError: (error) => console.error(error),
})

const limit = Number(parameters.get('limit') ?? 0)
const open = client.tasks.query({ orderBy: 'title', ...(limit > 0 && { limit }) })

function Tasks() {
  const { rows, phase } = useQuery(open)
  const { state, leader, outbox } = useStatus(client)
  const [add, last] = useWrite((title: string) => client.tasks.create({ title }))
  return createElement(
    'section',
    null,
    createElement('output', { 'data-phase': phase, 'data-state': state, 'data-leader': leader }, outbox.waiting),
    createElement('button', { onClick: () => add('by button') }, 'Add'),
    createElement('button', { onClick: () => add('') }, 'Add nothing'),
    createElement('p', { role: 'status' }, `${last.state} ${last.result?.code ?? ''}`.trim()),
    createElement(
      'ul',
      null,
      rows.map(({ id, title }) => createElement('li', { key: id }, title)),
    ),
  )
}

// A benchmark measures the client, not React with a long list.
const root = parameters.has('quiet') ? null : document.getElementById('root')
if (!root) open.subscribe(() => {})
else createRoot(root).render(createElement(StrictMode, null, createElement(Tasks)))

let ticks = 0
setInterval(() => (ticks += 1), 50)

const events: string[] = []
for (const name of ['reset', 'signedOut', 'outdated', 'rejected', 'conflict'] as const)
  client.on(name, () => events.push(name))

let conflict: Conflict | null = null
client.on('conflict', (event) => (conflict = event))

/** The record of the device in the storage of this page. */
function record(
  mode: IDBTransactionMode,
  use: (meta: IDBObjectStore) => IDBRequest,
  space = 'meta',
): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open('app')
    opening.onsuccess = () => {
      const transaction = opening.result.transaction(space, mode)
      const request = use(transaction.objectStore(space))
      transaction.oncomplete = () => {
        opening.result.close()
        resolve(request.result)
      }
      transaction.onabort = () => reject(transaction.error)
    }
  })
}

const page = {
  client,
  /** Resolves when the rows are the server's. */
  upToDate: () =>
    new Promise<void>((resolve) => {
      const check = () => client.status.getSnapshot().upToDate && resolve()
      client.status.subscribe(check)
      check()
    }),
  events,
  ticks: () => ticks,
  status: () => client.status.getSnapshot(),
  titles: () => open.getSnapshot().rows.map(({ title }) => title),
  /** Adds tasks that are durable when this resolves. */
  add: async (titles: string[]) => {
    const writes = titles.map((title) => client.tasks.create({ title }))
    const results = await Promise.all(writes.map(({ local }) => local))
    return results.every(({ ok }) => ok)
  },
  /** Resolves when no transaction is open: one that writes everything waits for all others. */
  idle: () => record('readwrite', (meta) => meta.count()),
  countRows: () => record('readonly', (rows) => rows.count(IDBKeyRange.bound(['tasks'], ['tasks', []])), 'rows'),
  decide: (choice: 'mine' | 'server') => conflict?.resolve(choice),
  device: () => record('readonly', (meta) => meta.get('device')),
  restore: (device: unknown) => record('readwrite', (meta) => meta.put(device, 'device')),
  /** Adds a task, and returns the status of its result. */
  addAndWait: async (title: string) => (await client.tasks.create({ title }).server).status,
}

export type TestPage = typeof page

Object.assign(window, { page })
