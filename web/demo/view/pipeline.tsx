import type { Demo } from '../model/demo'
import { ms } from '../model/story'
import { useNow, useSnapshot } from './hooks'
import { Drawing } from './drawing'
import { Journeys } from './journeys'
import { Action } from './switches'

/** What carries a change from one device to the other, with the times that the engine has measured. */
export function Pipeline({ demo }: { readonly demo: Demo }) {
  const { kill, redis } = demo.setup.features
  return (
    <section class="pipeline" aria-label="From Postgres to the devices">
      <Drawing demo={demo} />
      <EngineState demo={demo} />
      <div class="switches" role="group" aria-label="Server faults">
        {kill && (
          <Action onClick={() => void demo.kill()} isGrave>
            kill -9 the engine
          </Action>
        )}
        {redis && <Action onClick={() => void demo.restartRedis()}>Restart Redis</Action>}
      </div>
      <Journeys demo={demo} />
    </section>
  )
}

function EngineState({ demo }: { readonly demo: Demo }) {
  const engine = useSnapshot(demo.feed.engine)
  const killedAt = useSnapshot(demo.killedAt)
  const now = useNow()
  if (engine.state === 'unknown') return <p class="engine-state muted">Waiting for the engine’s report</p>
  const isBack = killedAt !== null && engine.state === 'up' && engine.downMs !== null && engine.at >= killedAt
  return (
    <p class="engine-state" role="status">
      {engine.state === 'down' && (
        <strong class="bad">
          The engine is dead{engine.pid !== null && `, process ${engine.pid}`}. A new one starts.
        </strong>
      )}
      {engine.state === 'up' && isBack && (
        <>
          Killed, and back after <strong>{ms(engine.downMs)}</strong> as process {engine.pid}
          {now - engine.at > 60_000 && <span class="muted"> some time ago</span>}
        </>
      )}
      {engine.state === 'up' && !isBack && (
        <span class="muted">Engine: process {engine.pid}. Dots are slowed down; the numbers are real.</span>
      )}
    </p>
  )
}
