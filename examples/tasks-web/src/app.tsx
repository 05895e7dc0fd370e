import { useState } from 'react'
import { useQuery, useStatus } from '@posduif/client/react'
import { Decisions } from './decisions'
import { posduif } from './posduif'
import { SignIn } from './sign-in'
import { StatusLine } from './status-line'
import { Tasks } from './tasks'

// Queries live as long as the page. Each is read from the storage once, and then follows every change.
const lists = posduif.lists.query({ orderBy: 'name' })
const members = posduif.list_members.query()
const users = posduif.users.query()

export function App() {
  const { state, hasSynced } = useStatus(posduif)
  // Rows of before stay when the session of this device has ended: they are shown, and can be changed.
  if (state === 'unenrolled' && !hasSynced)
    return (
      <main>
        <h1>Tasks</h1>
        <SignIn />
      </main>
    )
  return (
    <main>
      <StatusLine />
      {state === 'unenrolled' && <SignIn />}
      <Decisions />
      <Lists />
    </main>
  )
}

function Lists() {
  const { rows, phase } = useQuery(lists)
  const [chosen, choose] = useState<string | null>(null)
  const list = rows.find(({ id }) => id === chosen) ?? rows[0]
  if (!list) return <p className="quiet">{phase === 'ready' ? 'You are in no list.' : 'Loading the lists…'}</p>
  return (
    <>
      {rows.length > 1 && (
        <nav aria-label="Lists">
          {rows.map(({ id, name }) => (
            <button key={id} type="button" aria-pressed={id === list.id} onClick={() => choose(id)}>
              {name}
            </button>
          ))}
        </nav>
      )}
      <h1>{list.name}</h1>
      <Members list={list.id} />
      <Tasks key={list.id} list={list.id} />
    </>
  )
}

function Members({ list }: { readonly list: string }) {
  const { rows } = useQuery(members)
  const known = useQuery(users).rows
  const names = rows
    .filter(({ list_id }) => list_id === list)
    .map(({ user_id }) => known.find(({ id }) => id === user_id)?.username ?? 'another member')
    .sort()
  return <p className="quiet">Shared by {names.join(', ')}</p>
}
