import type { ComponentChildren } from 'preact'
import { useId, useState } from 'preact/hooks'
import { messageOf, request } from '../api/client'
import type { Done } from '../api/types'
import { Dialog } from './dialog'

export type Action = {
  /** The verb on the buttons: `Drop the slot`. */
  verb: string
  /** What must be typed. */
  name: string
  /** What the name is: `the name of the slot`. */
  noun: string
  path: string
  /** Further fields of the request. */
  body?: Record<string, unknown>
  /** What happens then. */
  effect: ComponentChildren
  /** Whether it cannot be undone. */
  danger?: boolean
}

/** An action waits for its name to be typed, then for its answer, which stays in view. */
export function ConfirmName(props: { action: Action; onClose: () => void; onDone: () => void }) {
  const { action, onClose, onDone } = props
  const [typed, setTyped] = useState('')
  const [state, setState] = useState<{ kind: 'open' | 'sending' | 'done' | 'failed'; text: string }>({
    kind: 'open',
    text: '',
  })
  const id = useId()
  const matches = typed.trim() === action.name
  const send = async (): Promise<void> => {
    setState({ kind: 'sending', text: '' })
    try {
      const answer = await request<Done>(action.path, {
        method: 'POST',
        body: { ...action.body, confirm: action.name },
        timeoutMs: 30_000,
      })
      setState({ kind: 'done', text: answer.done })
      onDone()
    } catch (error) {
      setState({ kind: 'failed', text: messageOf(error) })
    }
  }
  return (
    <Dialog title={action.verb} onClose={onClose}>
      <form
        onSubmit={(event) => {
          event.preventDefault()
          if (matches && state.kind !== 'sending' && state.kind !== 'done') void send()
        }}
      >
        <p>{action.effect}</p>
        {state.kind !== 'done' && (
          <p>
            <label for={id}>
              Type {action.noun}: <code class="typed">{action.name}</code>
            </label>
            <input
              id={id}
              value={typed}
              autocomplete="off"
              spellcheck={false}
              autofocus
              onInput={(event) => setTyped(event.currentTarget.value)}
            />
          </p>
        )}
        <output class={state.kind}>{state.text}</output>
        <div class="buttons">
          <button type="button" onClick={onClose}>
            {state.kind === 'done' ? 'Close' : 'Cancel'}
          </button>
          {state.kind !== 'done' && (
            <button
              type="submit"
              class={action.danger ? 'danger' : 'primary'}
              disabled={!matches || state.kind === 'sending'}
            >
              {state.kind === 'sending' ? 'Sending…' : action.verb}
            </button>
          )}
        </div>
      </form>
    </Dialog>
  )
}
