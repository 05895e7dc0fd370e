// The page of the tests of the devtools, as an app in development has them.
import { createClient, table } from '../../src/index.js'
import { devtools } from '../../src/devtools/index.js'
import { indexeddb } from '../../src/indexeddb/index.js'

type Task = { readonly id: string; readonly title: string; readonly done: boolean; readonly version: number }

const tools = devtools()
const client = createClient({
  url: location.origin,
  store: indexeddb('app'),
  tables: { tasks: table<Task>() },
  environment: tools.environment,
})
const unmount = tools.mount(client, document.getElementById('root')!)

const events: string[] = []
const waiting = new Set<() => void>()
const check = () => waiting.forEach((each) => each())
client.status.subscribe(check)
for (const name of ['reset', 'signedOut'] as const)
  client.on(name, () => {
    events.push(name)
    check()
  })

const page = {
  client,
  events,
  unmount,
  status: () => client.status.getSnapshot(),
  /** Under the policy of this page, a test cannot evaluate a condition again and again. */
  until: (holds: () => boolean) =>
    new Promise<void>((resolve) => {
      const settle = () => {
        if (!holds()) return
        waiting.delete(settle)
        resolve()
      }
      waiting.add(settle)
      settle()
    }),
}

export type DevtoolsPage = typeof page

Object.assign(window, { page })
