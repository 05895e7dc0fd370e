import type { ComponentChildren } from 'preact'
import type { Pane } from '../model/pane'
import { useSnapshot } from './hooks'

type ToggleProps = {
  readonly isOn: boolean
  readonly onChange: (isOn: boolean) => void
  readonly children: ComponentChildren
}

export function Toggle({ isOn, onChange, children }: ToggleProps) {
  return (
    <button type="button" role="switch" aria-checked={isOn} class="toggle" onClick={() => onChange(!isOn)}>
      <span class="track" aria-hidden="true" />
      {children}
    </button>
  )
}

type ActionProps = {
  readonly onClick: () => void
  readonly disabled?: boolean
  readonly isGrave?: boolean
  readonly children: ComponentChildren
}

export function Action({ onClick, disabled = false, isGrave = false, children }: ActionProps) {
  return (
    <button type="button" class={isGrave ? 'action grave' : 'action'} disabled={disabled} onClick={onClick}>
      {children}
    </button>
  )
}

/** How the device is connected, in a word. */
export function PaneState({ pane }: { readonly pane: Pane }) {
  const { live, upToDate, state } = useSnapshot(pane.client.status)
  if (state === 'unenrolled') return <span class="state-word off">no device</span>
  if (live === 'sse' || live === 'websocket')
    return <span class={`state-word ${upToDate ? 'on' : 'busy'}`}>{live === 'sse' ? 'SSE' : 'WebSocket'}</span>
  return <span class="state-word busy">reconnecting</span>
}
