import type { Demo } from '../model/demo'
import type { Director } from '../model/director'
import { Browser } from './browser'
import { Captions } from './captions'
import { Counters } from './counters'
import { Header } from './header'
import { useSnapshot } from './hooks'
import { Phone } from './phone'
import { Pipeline } from './pipeline'
import { SqlBox } from './sql'

export function App({ demo, director }: { readonly demo: Demo; readonly director: Director }) {
  const notice = useSnapshot(demo.notice)
  return (
    <>
      <Header demo={demo} />
      <main>
        <Captions demo={demo} director={director} />
        {notice !== null && (
          <p class="notice" role="alert">
            {notice}
          </p>
        )}
        {demo.isSecond && (
          <p class="notice">
            The demo is open in another tab, which keeps the stored devices. Those of this tab are new ones in memory,
            and end with it.
          </p>
        )}
        <div class="stage">
          <Phone demo={demo} />
          <Pipeline demo={demo} />
          <Browser demo={demo} />
        </div>
        <Counters demo={demo} />
        {demo.setup.features.sql && <SqlBox sql={demo.sql} />}
      </main>
      <footer class="foot">
        <p>
          Both devices run the client package <code>@posduif/client</code> in this page, each with a store and a
          connection of its own. The switches act between client and engine; everything else is real.
        </p>
      </footer>
    </>
  )
}
