import '../style/console.css'
import { render } from 'preact'
import { begin } from '../api/session'
import { beginTheme } from '../parts/theme'
import { App } from './app'
import { followLocation } from './location'

beginTheme()
const root = document.getElementById('root')
if (root) {
  void begin().then((problem) => {
    followLocation()
    render(<App problem={problem} />, root)
  })
}
