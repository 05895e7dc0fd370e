import { nextTheme, theme } from '../../parts/theme'
import { useStore } from '../../parts/hooks'
import type { Demo } from '../model/demo'

export function Header({ demo }: { readonly demo: Demo }) {
  const choice = useStore(theme)
  return (
    <header class="top">
      <h1>
        <Pigeon />
        Posduif
      </h1>
      <p>Rows from Postgres on every device, and their changes back. Each once, in order.</p>
      <div class="top-actions">
        <button type="button" class="quiet" onClick={nextTheme}>
          Theme: {choice}
        </button>
        {demo.setup.console !== null && (
          <button type="button" class="quiet console-link" onClick={() => void demo.openConsole()}>
            <span class="wide">Operator’s </span>console
          </button>
        )}
      </div>
    </header>
  )
}

function Pigeon() {
  return (
    <svg class="mark" viewBox="0 0 32 32" aria-hidden="true">
      <path d="M3 18c6 0 8-9 15-10 3-.4 5 1 6 3l5 1-4 3c0 8-6 12-13 12-4 0-7-2-9-5 5 1 9 0 11-3-4 1-8 1-11-1Z" />
    </svg>
  )
}
