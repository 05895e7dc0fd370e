import type { Demo } from '../model/demo'
import { ms } from '../model/story'
import { useSnapshot } from './hooks'
import { Gate, PaneApp } from './pane-app'
import { Action, PaneState, Toggle } from './switches'

export function Phone({ demo }: { readonly demo: Demo }) {
  const pane = demo.joe
  const access = useSnapshot(pane.access)
  const { offline, loseNext } = useSnapshot(pane.faults.state)
  const { outbox } = useSnapshot(pane.client.status)
  const revokedAt = useSnapshot(demo.revokedAt)
  const endedAt = useSnapshot(pane.endedAt)
  const isDark = access === 'revoked'
  return (
    <section class="device phone-side" aria-label="Joe’s phone">
      <div class={`phone ${isDark ? 'dark' : ''}`}>
        <div class="phone-bar">
          <span>Joe</span>
          <span class="phone-signal">
            {offline ? 'Airplane mode' : <PaneState pane={pane} />}
            <Badge waiting={outbox.waiting} />
          </span>
        </div>
        {isDark ? (
          <div class="dark-screen">
            <p class="dark-title">This phone was revoked</p>
            <p>
              Its stream is closed and its token is refused.
              {revokedAt !== null && endedAt !== null && endedAt >= revokedAt && (
                <>
                  {' '}
                  It took <strong>{ms(endedAt - revokedAt)}</strong>.
                </>
              )}
            </p>
            <button type="button" class="primary" onClick={() => void pane.enter()}>
              Enroll again
            </button>
          </div>
        ) : (
          <Gate pane={pane}>
            <PaneApp pane={pane} demo={demo} />
          </Gate>
        )}
      </div>
      <div class="switches" role="group" aria-label="Joe’s phone: faults">
        <Toggle isOn={offline} onChange={(isOn) => pane.setOffline(isOn)}>
          Offline
        </Toggle>
        <Toggle isOn={loseNext} onChange={(isOn) => pane.faults.setLoseNext(isOn)}>
          Lose the next answer
        </Toggle>
        <Action onClick={() => demo.expireToken(pane)} disabled={isDark || offline}>
          Expire the token
        </Action>
        <Action onClick={() => void demo.revoke()} disabled={isDark} isGrave>
          Revoke the phone
        </Action>
      </div>
    </section>
  )
}

/** How many changes wait in the outbox. */
export function Badge({ waiting }: { readonly waiting: number }) {
  return (
    <output class={waiting > 0 ? 'badge' : 'badge empty'} aria-label="Changes that wait in the outbox">
      {waiting}
    </output>
  )
}
