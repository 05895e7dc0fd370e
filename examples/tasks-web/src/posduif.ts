import { createClient, table } from '@posduif/client'
import { indexeddb } from '@posduif/client/indexeddb'
import * as part from '@posduif/client/sync'

/** The columns of the tables of `posduif dev` that this app uses. */
export type List = { readonly id: string; readonly name: string }

export type Member = { readonly id: string; readonly list_id: string; readonly user_id: string }

export type Task = {
  readonly id: string
  readonly list_id: string
  readonly title: string
  readonly done: boolean
  readonly created_at: string
  readonly version: number
}

// In development only: a panel with rows, outbox, log and faults. A build for users does not have it.
const tools = import.meta.env.DEV ? (await import('@posduif/client/devtools')).devtools() : null

export const posduif = createClient({
  url: location.origin,
  store: indexeddb('tasks-web'),
  // With the rest, not later: the service worker keeps the files that the page names.
  sync: async () => part,
  tables: { lists: table<List>(), list_members: table<Member>(), tasks: table<Task>() },
  device: { name: 'Tasks on the web', type: 'browser' },
  ...(tools && { environment: tools.environment }),
})

tools?.mount(posduif)
