import { execFileSync } from 'node:child_process'
import { mkdirSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { chromium, type Browser, type BrowserContext, type Page } from 'playwright-core'
import type { Listener } from './engine'
import { Site } from './site'

// The bundled tests are in build/browser.
const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..')
const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8')

/** How long a page may take to show what a test waits for. */
export const WAIT_MS = 15_000

export function findBrowser(): string {
  const named = process.env['POSDUIF_BROWSER']
  if (named) return named
  for (const name of ['chromium', 'chromium-browser', 'google-chrome']) {
    try {
      return execFileSync('sh', ['-c', `command -v ${name}`], { encoding: 'utf8' }).trim()
    } catch {
      // Not this one.
    }
  }
  throw new Error('no browser: install Chromium, or name it in POSDUIF_BROWSER')
}

export async function launch(): Promise<Browser> {
  return chromium.launch({ executablePath: findBrowser(), args: ['--no-sandbox'] })
}

export type View = { width: number; height: number; scheme: 'dark' | 'light' }

export const VIEWS: View[] = [1280, 390].flatMap((width) =>
  (['dark', 'light'] as const).map((scheme) => ({ width, height: width > 1000 ? 900 : 844, scheme })),
)

export type Opening = {
  view?: View
  /** As `posduif console` prints it. */
  link?: string
  /** The page that is in the program, instead of the one that was built last. */
  embedded?: boolean
}

/** The console in a browser. Closing it fails the test if a page reported anything. */
export class Console {
  static readonly #open = new Set<Console>()
  readonly page: Page
  readonly context: BrowserContext
  readonly #site: Site | null
  readonly #problems: string[] = []

  private constructor(site: Site | null, base: string, context: BrowserContext, page: Page) {
    this.#site = site
    this.context = context
    this.page = page
    page.on('pageerror', (error) => this.#problems.push(`${error.name}: ${error.message}`))
    page.on('console', (message) => {
      // The browser reports each request without an answer; tests cause them.
      if (message.type() === 'error' && !message.text().startsWith('Failed to load resource'))
        this.#problems.push(message.text())
    })
    page.on('request', (sent) => {
      const address = sent.url()
      if (!address.startsWith(`${base}/`) && !address.startsWith('data:'))
        this.#problems.push(`a request to another host: ${address}`)
    })
  }

  /** Without a session. */
  static async open(browser: Browser, listener: Listener, opening: Opening = {}): Promise<Console> {
    const { view = VIEWS[0]!, link = '', embedded = false } = opening
    const site = embedded ? null : await Site.start(listener.admin, join(root, 'dist/console'))
    const base = site?.url ?? listener.admin
    const context = await browser.newContext({
      viewport: { width: view.width, height: view.height },
      colorScheme: view.scheme,
      reducedMotion: 'reduce',
    })
    context.setDefaultTimeout(WAIT_MS)
    const page = await context.newPage()
    const console = new Console(site, base, context, page)
    Console.#open.add(console)
    await page.addInitScript(() => {
      // An error in the console fails the test, and names the directive.
      document.addEventListener('securitypolicyviolation', (event) => {
        globalThis.console.error(`CSP violation: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`)
      })
      addEventListener('unhandledrejection', (event) => {
        globalThis.console.error(`unhandled rejection: ${String(event.reason)}`)
      })
    })
    await page.goto(`${base}/console/${new URL(link, base).hash}`)
    return console
  }

  /** With a session by a link, as `posduif console` prints it. */
  static async signedIn(browser: Browser, listener: Listener, opening: Opening = {}): Promise<Console> {
    const console = await Console.open(browser, listener, { ...opening, link: await listener.link() })
    await console.page.getByRole('heading', { name: 'Age of what clients see' }).waitFor()
    return console
  }

  async show(path: string, title: string): Promise<void> {
    await this.page.evaluate((hash) => {
      location.hash = hash
    }, `#/${path}`)
    await this.page.getByRole('heading', { level: 1, name: title }).waitFor()
  }

  /** What axe finds, one line each. */
  async violations(): Promise<string[]> {
    // The policy refuses a script tag; evaluating is not subject to it.
    await this.page.evaluate(axe)
    return this.page.evaluate(async () => {
      type Found = { violations: { id: string; nodes: { html: string }[] }[] }
      const { axe } = globalThis as unknown as { axe: { run(): Promise<Found> } }
      const { violations } = await axe.run()
      return violations.map((one) => `${one.id}: ${one.nodes.map((node) => node.html).join(' ')}`)
    })
  }

  /** Pixels that the page is wider than its window. */
  async overflow(): Promise<number> {
    return this.page.evaluate(() => document.documentElement.scrollWidth - innerWidth)
  }

  /** Writes a picture, if POSDUIF_SCREENSHOTS names a folder. */
  async picture(name: string, fullPage = true): Promise<void> {
    const folder = process.env['POSDUIF_SCREENSHOTS']
    if (!folder) return
    mkdirSync(folder, { recursive: true })
    await this.page.screenshot({ path: join(folder, `${name}.png`), fullPage })
  }

  async close(): Promise<void> {
    await this.#end()
    if (this.#problems.length > 0) throw new Error(`the page reported: ${this.#problems.join('; ')}`)
  }

  /** Closes those of tests that failed, so that the runner can end. */
  static async closeAll(): Promise<void> {
    for (const console of Console.#open) await console.#end()
  }

  async #end(): Promise<void> {
    if (!Console.#open.delete(this)) return
    await this.context.close()
    await this.#site?.stop()
  }
}
