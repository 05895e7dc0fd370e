import { useRef, useState } from 'preact/hooks'
import type { Pane, Task } from '../model/pane'
import { splitTag } from '../model/tag'
import { useSnapshot } from './hooks'

type Props = { readonly pane: Pane; readonly list: { readonly id: string; readonly name: string } }

export function Tasks({ pane, list }: Props) {
  const { rows, phase } = useSnapshot(pane.tasks)
  const lists = useSnapshot(pane.lists).rows
  const waiting = new Set(useWaiting(pane, 'tasks'))
  const isChanged = useChanges(rows, phase === 'ready')
  const tasks = rows.filter(({ list_id: of }) => of === list.id).sort(newestFirst)
  const name = lists.find(({ id }) => id === list.id)?.name ?? list.name
  return (
    <section class="tasks" aria-label={`${name} of ${pane.name === 'joe' ? 'Joe' : 'Bob'}`}>
      <h3>
        {name} <span class="muted">{tasks.filter(({ done }) => !done).length} open</span>
      </h3>
      <Compose label="New task" action="Add" onSend={(text) => pane.add(text)} />
      <ul tabIndex={0} aria-label="Tasks">
        {tasks.map((task) => (
          <TaskRow key={task.id} task={task} pane={pane} waits={waiting.has(task.id)} isChanged={isChanged(task)} />
        ))}
        {tasks.length === 0 && <li class="muted none">{phase === 'ready' ? 'Nothing to buy' : 'Loading'}</li>}
      </ul>
    </section>
  )
}

type RowProps = {
  readonly task: Task
  readonly pane: Pane
  readonly waits: boolean
  readonly isChanged: boolean
}

function TaskRow({ task, pane, waits, isChanged }: RowProps) {
  const [isEditing, setEditing] = useState(false)
  const { text, tag } = splitTag(task.title)
  const save = (value: string) => {
    setEditing(false)
    if (value.trim() !== '' && value.trim() !== text) pane.rename(task.id, value)
  }
  return (
    <li class={`task ${task.done ? 'is-done' : ''}`} data-id={task.id}>
      {isChanged && <span class="flash" key={`${task.version}${task.title}`} aria-hidden="true" />}
      <input
        type="checkbox"
        checked={task.done}
        aria-label={`Done: ${text}`}
        onChange={({ currentTarget }) => pane.tick(task.id, currentTarget.checked)}
      />
      {isEditing ? (
        <input
          class="rename"
          aria-label={`New name of ${text}`}
          defaultValue={text}
          ref={focusAll}
          onBlur={({ currentTarget }) => save(currentTarget.value)}
          onKeyDown={({ key, currentTarget }) => {
            if (key === 'Enter') currentTarget.blur()
            if (key === 'Escape') setEditing(false)
          }}
        />
      ) : (
        <button type="button" class="title" onClick={() => setEditing(true)} aria-label={`Rename ${text}`}>
          {text}
        </button>
      )}
      {waits && <Waits />}
      <span class="row-note">
        {tag !== null && <span class="tag">#{tag}</span>}
        <span class="version" title="version of the row">
          v{task.version ?? '–'}
        </span>
      </span>
      <button type="button" class="delete" aria-label={`Delete ${text}`} onClick={() => pane.remove(task.id)}>
        ×
      </button>
    </li>
  )
}

function focusAll(input: HTMLInputElement | null): void {
  input?.focus()
  input?.select()
}

export function Waits() {
  return (
    <span class="waits" title="waits in the outbox">
      <span class="visually-hidden">waits in the outbox</span>
    </span>
  )
}

type ComposeProps = { readonly label: string; readonly action: string; readonly onSend: (text: string) => void }

export function Compose({ label, action, onSend }: ComposeProps) {
  const [text, setText] = useState('')
  return (
    <form
      class="compose"
      onSubmit={(event) => {
        event.preventDefault()
        if (text.trim() === '') return
        onSend(text)
        setText('')
      }}
    >
      <input
        aria-label={label}
        placeholder={label}
        value={text}
        maxLength={200}
        onInput={({ currentTarget }) => setText(currentTarget.value)}
      />
      <button type="submit">{action}</button>
    </form>
  )
}

/** Ids of the rows of a table with a change in the outbox. */
export function useWaiting(pane: Pane, table: string): string[] {
  const entries = useSnapshot(pane.outbox)
  return entries.flatMap((entry) => {
    const waits = entry.state === 'waiting' || entry.state === 'sent'
    return waits && entry.table === table ? [entry.id] : []
  })
}

/** Tells rows that have changed since the page showed the first ones. */
function useChanges(rows: readonly Task[], isReady: boolean): (task: Task) => boolean {
  const first = useRef<ReadonlyMap<string, Task> | null>(null)
  if (first.current === null && isReady) first.current = new Map(rows.map((row) => [row.id, row]))
  return (task) => {
    const before = first.current?.get(task.id)
    return first.current !== null && before !== task && before?.version !== task.version
  }
}

function newestFirst(one: Task, other: Task): number {
  // A row that was created here has no time yet.
  const [a, b] = [one.created_at ?? '~', other.created_at ?? '~']
  return a === b ? (one.id < other.id ? 1 : -1) : a < b ? 1 : -1
}
