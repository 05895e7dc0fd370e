import { Store } from '../api/store'

export type Theme = 'system' | 'light' | 'dark'

const KEY = 'posduif-theme'
const THEMES: Theme[] = ['system', 'light', 'dark']

export const theme = new Store<Theme>('system')
/** What is shown. */
export const scheme = new Store<'light' | 'dark'>('dark')

/** Applies the stored choice, and follows the setting of the system. */
export function beginTheme(): void {
  const dark = matchMedia('(prefers-color-scheme: dark)')
  const apply = (): void => {
    const shown = theme.value === 'system' ? (dark.matches ? 'dark' : 'light') : theme.value
    document.documentElement.dataset['theme'] = shown
    scheme.set(shown)
  }
  theme.set(stored())
  apply()
  dark.addEventListener('change', apply)
  theme.subscribe(apply)
}

export function nextTheme(): void {
  const next = THEMES[(THEMES.indexOf(theme.value) + 1) % THEMES.length] ?? 'system'
  theme.set(next)
  try {
    localStorage.setItem(KEY, next)
  } catch {
    // Without storage the choice lasts as long as the page.
  }
}

function stored(): Theme {
  try {
    return THEMES.find((known) => known === localStorage.getItem(KEY)) ?? 'system'
  } catch {
    return 'system'
  }
}
