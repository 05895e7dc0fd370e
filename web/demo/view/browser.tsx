import type { Demo } from '../model/demo'
import { useSnapshot } from './hooks'
import { Gate, PaneApp } from './pane-app'
import { Badge } from './phone'
import { Action, PaneState, Toggle } from './switches'

export function Browser({ demo }: { readonly demo: Demo }) {
  const pane = demo.bob
  const { offline, loseNext } = useSnapshot(pane.faults.state)
  const { outbox } = useSnapshot(pane.client.status)
  return (
    <section class="device browser-side" aria-label="Bob’s browser">
      <div class="browser">
        <div class="browser-bar">
          <span class="lights" aria-hidden="true">
            <i />
            <i />
            <i />
          </span>
          <span class="address">groceries.example · Bob</span>
          <span class="phone-signal">
            {offline ? 'Offline' : <PaneState pane={pane} />}
            <Badge waiting={outbox.waiting} />
          </span>
        </div>
        <Gate pane={pane}>
          <PaneApp pane={pane} demo={demo} />
        </Gate>
      </div>
      <div class="switches" role="group" aria-label="Bob’s browser: faults">
        <Toggle isOn={offline} onChange={(isOn) => pane.setOffline(isOn)}>
          Offline
        </Toggle>
        <Toggle isOn={loseNext} onChange={(isOn) => pane.faults.setLoseNext(isOn)}>
          Lose the next answer
        </Toggle>
        <Action onClick={() => demo.expireToken(pane)} disabled={offline}>
          Expire the token
        </Action>
      </div>
    </section>
  )
}
