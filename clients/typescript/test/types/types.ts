// Compiled, never run: each marked line must not compile, and the others must.
import { createClient, table, type LocalResult, type QuerySnapshot, type ServerResult } from '../../src/index.js'
import { memory } from '../../src/memory/index.js'

type Task = { readonly id: string; readonly title: string; readonly done: boolean; readonly rank: number | null }

const client = createClient({
  url: 'https://api.example.com',
  store: memory(),
  tables: {
    tasks: table<Task>(),
    lists: table<{ readonly id: number; readonly name: string }>({ name: 'todo_lists', merge: 'columns' }),
  },
})

const open = client.tasks.query({
  where: { done: false, rank: { gt: 3 } },
  orderBy: [
    ['rank', 'desc'],
    ['title', 'asc'],
  ],
  limit: 10,
})
const snapshot: QuerySnapshot<Task> = open.getSnapshot()
const title: string | undefined = snapshot.rows[0]?.title
client.tasks.query({ where: (row) => row.done })
client.tasks.query({ orderBy: 'title' })
client.tasks.query({ orderBy: ['title', 'desc'] })

const write = client.tasks.create({ title: 'milk' })
const local: Promise<LocalResult> = write.local
const server: Promise<ServerResult> = write.server
client.messages.create({ recipient_id: 'id', content: 'hello' })
client.messages.read('id')
client.on('conflict', ({ mine, resolve }) => void [mine, resolve('mine')])

// @ts-expect-error a table that is not listed
client.others.query()
// @ts-expect-error a column of another type
client.tasks.create({ title: 1 })
// @ts-expect-error a column that the table does not have
client.tasks.edit('id', { colour: 'red' })
// @ts-expect-error no order by such a column
client.tasks.query({ orderBy: 'colour' })
// @ts-expect-error no comparison with another type
client.tasks.query({ where: { rank: { gt: 'x' } } })
// @ts-expect-error users cannot be written
client.users.create({ username: 'x' })
// @ts-expect-error rows are read-only
snapshot.rows[0]!.title = 'x'
// @ts-expect-error a result is awaited, or it is no result
const isApplied: boolean = write.server.status === 'applied'
// @ts-expect-error only messages are read
client.tasks.read('id')
// @ts-expect-error no such event
client.on('changed', () => {})
// @ts-expect-error a store is needed
createClient({ url: 'https://api.example.com' })

void [title, local, server, isApplied]
