import { useId, useState } from 'preact/hooks'
import { messageOf } from '../api/client'
import { signInWithToken } from '../api/session'
import { Command } from '../parts/command'

/** How to get a session: a link that the command line prints, or the admin token. */
export function Login({ problem }: { problem: string | null }) {
  const [token, setToken] = useState('')
  const [error, setError] = useState(problem)
  const [sending, setSending] = useState(false)
  const id = useId()
  const send = async (): Promise<void> => {
    setSending(true)
    setError(null)
    try {
      await signInWithToken(token.trim())
    } catch (failure) {
      setError(messageOf(failure))
      setSending(false)
    }
  }
  return (
    <main class="login">
      <h1>Posduif console</h1>
      <p>
        Run this where the engine runs, and open the link that it prints. The link is good once, for 60 seconds.
      </p>
      <Command text="posduif console" />
      <form
        onSubmit={(event) => {
          event.preventDefault()
          if (token.trim() !== '' && !sending) void send()
        }}
      >
        <label for={id}>Or sign in with the admin token</label>
        <div class="row">
          <input
            id={id}
            type="password"
            autocomplete="off"
            value={token}
            onInput={(event) => setToken(event.currentTarget.value)}
          />
          <button type="submit" class="primary" disabled={token.trim() === '' || sending}>
            Sign in
          </button>
        </div>
      </form>
      <p class="error" role="alert" hidden={error === null}>
        {error}
      </p>
    </main>
  )
}
