import { useState, type FormEvent } from 'react'
import { posduif } from './posduif'

export function SignIn() {
  const [problem, setProblem] = useState<string | null>(null)
  const [isBusy, setBusy] = useState(false)
  const submit = async (event: FormEvent<HTMLFormElement>) => {
    event.preventDefault()
    const form = new FormData(event.currentTarget)
    setBusy(true)
    const outcome = await posduif.login({
      username: String(form.get('username')),
      password: String(form.get('password')),
      tenant: 'demo',
    })
    setBusy(false)
    setProblem(outcome.ok ? null : outcome.message)
  }
  return (
    <form className="card" onSubmit={(event) => void submit(event)}>
      <label>
        Name
        <input name="username" autoComplete="username" defaultValue="bob" required />
      </label>
      <label>
        Password
        <input name="password" type="password" autoComplete="current-password" required />
      </label>
      <button type="submit" className="primary" disabled={isBusy}>
        Sign in
      </button>
      {problem && <p role="alert">{problem}</p>}
    </form>
  )
}
