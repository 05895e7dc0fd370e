import { session } from '../api/client'
import { Store } from '../api/store'
import { ConfirmName, type Action } from './confirm-name'
import { useStore } from './hooks'

/** The action whose dialog is open. It outlives the row that it was opened from. */
const open = new Store<{ action: Action; onDone: () => void } | null>(null)

/** The button of an action; absent unless `admin.actions` is set. */
export function ActionButton({ action, onDone, label }: { action: Action; onDone: () => void; label?: string }) {
  const current = useStore(session)
  if (!current?.actions) return null
  return (
    <button
      type="button"
      class={action.danger ? 'danger' : undefined}
      aria-label={label === undefined ? undefined : `${action.verb} ${action.name}`}
      aria-haspopup="dialog"
      onClick={() => open.set({ action, onDone })}
    >
      {label ?? action.verb}
    </button>
  )
}

/** The dialog of the open action, once for the page. */
export function ActionDialog() {
  const current = useStore(open)
  if (!current) return null
  return <ConfirmName action={current.action} onClose={() => open.set(null)} onDone={current.onDone} />
}
