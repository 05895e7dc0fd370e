import { render } from 'preact'
import { beginTheme } from '../parts/theme'
import { demo } from './model/api'
import { Demo } from './model/demo'
import { Director } from './model/director'
import { App } from './view/app'
import { Trouble } from './view/trouble'
import '../style/tokens.css'
import '../style/base.css'
import './style/demo.css'

const LOCK = 'posduif-demo'

/** After a reload the former page may still hold the lock for a moment. */
const LOCK_MS = 500

const root = document.getElementById('root') as HTMLElement

/** Resolves to whether this is the only tab of the demo; the lock is held as long as the page lives. */
function isFirstTab(): Promise<boolean> {
  if (!('locks' in navigator)) return Promise.resolve(true)
  return new Promise((resolve) => {
    const held = () => new Promise<void>(() => resolve(true))
    navigator.locks.request(LOCK, { signal: AbortSignal.timeout(LOCK_MS) }, held).catch(() => resolve(false))
  })
}

async function begin(): Promise<void> {
  beginTheme()
  try {
    const [setup, isFirst] = await Promise.all([demo.setup(), isFirstTab()])
    const model = new Demo(setup, !isFirst)
    render(<App demo={model} director={new Director(model)} />, root)
    model.start()
  } catch (error) {
    render(<Trouble message={error instanceof Error ? error.message : String(error)} />, root)
  }
}

void begin()
