import { useEffect, useRef } from 'preact/hooks'
import { session } from '../api/client'
import { figures } from '../api/figures'
import { signOut } from '../api/session'
import type { Problem } from '../api/types'
import { ActionDialog } from '../parts/action'
import { Command } from '../parts/command'
import { useNow, useStore } from '../parts/hooks'
import { Mark } from '../parts/level'
import { nextTheme, theme } from '../parts/theme'
import { href, place } from './location'
import { Login } from './login'
import { FIRST, ROUTES, routeOf, type Params, type Route } from './routes'
import { titleOf, verdictAt, type Shown } from './verdict'

export function App({ problem }: { problem: string | null }) {
  const current = useStore(session)
  const isSignedIn = current != null
  useEffect(() => {
    if (!isSignedIn) {
      document.title = 'Sign in – Posduif'
      return
    }
    figures.start()
    return () => figures.stop()
  }, [isSignedIn])
  return isSignedIn ? <Console /> : <Login problem={problem} />
}

function Console() {
  const { path, params } = useStore(place)
  const state = useStore(figures.state)
  const verdict = verdictAt(state, useNow())
  const route = routeOf(path)
  const title = titleOf(verdict, route?.title ?? 'Not found')
  useEffect(() => {
    document.title = title
  }, [title])
  useEffect(() => scrollTo(0, 0), [path])
  return (
    <>
      <a class="skip" href="#content" onClick={focusContent}>
        Skip to the content
      </a>
      <Side route={route} problems={verdict?.isLost ? [] : (state.latest?.problems ?? [])} />
      <div class="page">
        <VerdictBar verdict={verdict} />
        <main id="content" tabIndex={-1}>
          {route ? <Screen route={route} params={params} /> : <NotFound path={path} />}
        </main>
        {route && (
          <footer>
            <span>The same on the command line</span>
            <Command text={route.command(params)} />
          </footer>
        )}
      </div>
      <ActionDialog />
    </>
  )
}

function Screen({ route, params }: { route: Route; params: Params }) {
  const Content = route.screen
  return (
    <>
      <div class="title">
        <h1>{route.title}</h1>
        <p>{route.question}</p>
      </div>
      <Content key={route.path} params={params} />
    </>
  )
}

function Side({ route, problems }: { route: Route | null; problems: Problem[] }) {
  const current = useStore(session)
  const choice = useStore(theme)
  const list = useRef<HTMLUListElement>(null)
  useEffect(() => {
    // On narrow screens the list scrolls sideways.
    list.current?.querySelector('[aria-current]')?.scrollIntoView({ block: 'nearest', inline: 'center' })
  }, [route])
  return (
    <header class="side">
      <a class="brand" href={href(FIRST.path)}>
        Posduif
      </a>
      <nav aria-label="Screens">
        <ul ref={list}>
          {ROUTES.map((one) => {
            const worst = worstOf(problems.filter((problem) => problem.screen === one.path))
            return (
              <li key={one.path}>
                <a href={href(one.path)} aria-current={one === route ? 'page' : undefined}>
                  {one.title}
                  {worst && <Mark level={worst.level} />}
                </a>
              </li>
            )
          })}
        </ul>
      </nav>
      <div class="about">
        <p>
          <span title={current?.version}>Version {current?.version.split(' ')[0]}</span>
          <br />
          {current?.actions ? 'Actions are on' : 'Read only'}
        </p>
        <button type="button" class="quiet" onClick={nextTheme}>
          Theme: {choice}
        </button>
        <button type="button" class="quiet" onClick={() => void signOut().catch(() => {})}>
          Sign out
        </button>
      </div>
    </header>
  )
}

function worstOf(problems: Problem[]): Problem | undefined {
  return problems.find((problem) => problem.level === 'fail') ?? problems[0]
}

function VerdictBar({ verdict }: { verdict: Shown | null }) {
  return (
    <section class={`verdict ${verdict?.level ?? 'none'}`} aria-label="Verdict">
      <p role="status" aria-live="polite">
        {verdict ? <Mark level={verdict.level} /> : <Mark level="none" />}
        <strong>{verdict?.sentence ?? 'Connecting to the engine'}</strong>
      </p>
      {verdict?.since && <span class="since">The last figures are {verdict.since} old</span>}
      {verdict?.command && <Command text={verdict.command} />}
      {verdict?.screen && <a href={href(verdict.screen)}>Show</a>}
    </section>
  )
}

/** The fragment is the place of the console, so the link cannot be a plain one. */
function focusContent(event: Event): void {
  event.preventDefault()
  document.getElementById('content')?.focus()
}

function NotFound({ path }: { path: string }) {
  return (
    <>
      <div class="title">
        <h1>Not found</h1>
      </div>
      <p class="empty">
        There is no screen “{path}”. <a href={href(FIRST.path)}>Show {FIRST.title}</a>
      </p>
    </>
  )
}
