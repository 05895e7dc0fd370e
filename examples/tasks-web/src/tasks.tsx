import { useMemo, useState, type FormEvent } from 'react'
import { useQuery } from '@posduif/client/react'
import { useOutbox } from './outbox'
import { posduif, type Task } from './posduif'

export function Tasks({ list }: { readonly list: string }) {
  // A new row has no `created_at` before the server has answered: it comes last, which is where it stays.
  const query = useMemo(
    () => posduif.tasks.query({ where: { list_id: list }, orderBy: [['done', 'asc'], ['created_at', 'asc']] }),
    [list],
  )
  const { rows } = useQuery(query)
  const waiting = new Set(
    useOutbox().flatMap(({ id, state }) => (state === 'waiting' || state === 'sent' ? [id] : [])),
  )
  const add = (event: FormEvent<HTMLFormElement>) => {
    event.preventDefault()
    const input = event.currentTarget.elements.namedItem('title') as HTMLInputElement
    const title = input.value.trim()
    if (title === '') return
    posduif.tasks.create({ list_id: list, title, done: false })
    input.value = ''
  }
  return (
    <>
      <ul className="card">
        {rows.map((task) => (
          <Row key={task.id} task={task} isWaiting={waiting.has(task.id)} />
        ))}
        {rows.length === 0 && <li className="quiet">Nothing to do.</li>}
      </ul>
      <form className="add" onSubmit={add}>
        <label>
          <span className="quiet">New task</span>
          <input name="title" autoComplete="off" />
        </label>
        <button type="submit" className="primary">
          Add
        </button>
      </form>
    </>
  )
}

function Row({ task, isWaiting }: { readonly task: Task; readonly isWaiting: boolean }) {
  const [isEdited, setEdited] = useState(false)
  const { id, title, done } = task
  const save = (event: FormEvent<HTMLFormElement>) => {
    event.preventDefault()
    const next = String(new FormData(event.currentTarget).get('title')).trim()
    if (next !== '' && next !== title) posduif.tasks.edit(id, { title: next })
    setEdited(false)
  }
  if (isEdited)
    return (
      <li>
        <form onSubmit={save}>
          <input
            name="title"
            aria-label={`Title of ${title}`}
            defaultValue={title}
            autoFocus
            onKeyDown={({ key }) => key === 'Escape' && setEdited(false)}
          />
          <button type="submit">Save</button>
          <button type="button" onClick={() => setEdited(false)}>
            Cancel
          </button>
        </form>
      </li>
    )
  return (
    <li data-done={done}>
      <label>
        <input type="checkbox" checked={done} onChange={() => posduif.tasks.edit(id, { done: !done })} />
        <span>{title}</span>
      </label>
      {isWaiting && <span className="chip">waits</span>}
      <button type="button" aria-label={`Edit ${title}`} onClick={() => setEdited(true)}>
        Edit
      </button>
      <button type="button" aria-label={`Delete ${title}`} onClick={() => posduif.tasks.delete(id)}>
        Delete
      </button>
    </li>
  )
}
