// What `posduif client types` prints, and that an app can use it as it is.
import { createClient, table, type Query } from '../../src/index.js'
import { memory } from '../../src/memory/index.js'

export type NotesRow = {
  id: string
  owner: string
  body: string | null
  mood: "calm" | "in \"love\"" | null
  price: number | string
  stars: (number | null)[] | null
  detail: unknown | null
  "due at": string | null
}

export const tables = {
  notes: table<NotesRow>({ merge: 'columns' }),
}

const client = createClient({ url: '', store: memory(), tables })

const query: Query<NotesRow> = client.notes.query({
  where: { mood: 'calm', price: { gte: 5 }, body: null, 'due at': { lt: '2026-01-01' } },
  orderBy: [['due at', 'desc']],
})
export const body: string | null | undefined = query.getSnapshot().rows[0]?.body

client.notes.create({ body: 'new', stars: [1, null], detail: { any: ['json'] } })
client.notes.edit('id', { mood: null, price: '9007199254740993' })

// @ts-expect-error a value that the type in Postgres does not have
client.notes.edit('id', { mood: 'angry' })
// @ts-expect-error a column that the table does not have
client.notes.query({ where: { title: 'x' } })
