import type { ComponentChildren } from 'preact'
import type { Demo } from '../model/demo'
import type { Pane } from '../model/pane'
import { Chat } from './chat'
import { Conflicts } from './conflicts'
import { useSnapshot } from './hooks'
import { Tasks } from './tasks'

/** What stands in the way of the rows. */
export function Gate({ pane, children }: { readonly pane: Pane; readonly children: ComponentChildren }) {
  const access = useSnapshot(pane.access)
  const problem = useSnapshot(pane.problem)
  if (access === 'failed') {
    return (
      <div class="gate" role="alert">
        <p>This device was not added: {problem}</p>
        <button type="button" class="primary" onClick={() => void pane.enter()}>
          Try again
        </button>
      </div>
    )
  }
  if (access === 'starting' || access === 'adding') {
    return (
      <div class="gate">
        <p>{pane.name === 'joe' ? 'Joe scans the code of an enrollment' : 'Bob logs in'}</p>
      </div>
    )
  }
  return <>{children}</>
}

/** The app that runs on both devices. */
export function PaneApp({ pane, demo }: { readonly pane: Pane; readonly demo: Demo }) {
  return (
    <div class="app">
      <Conflicts pane={pane} resolve={(key, choice) => demo.resolve(pane, key, choice)} />
      <Tasks pane={pane} list={demo.setup.list} />
      <Chat pane={pane} users={demo.setup.users} />
    </div>
  )
}
