import { execFileSync } from 'node:child_process'
import { basename, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'
import { chromium, type Browser, type BrowserContext, type Page } from 'playwright-core'
import type { TestContext } from 'node:test'
import { Engine } from '../engine/engine.js'
import { Proxy } from '../engine/proxy.js'
import type { TestPage } from './app.js'

declare global {
  // What app.ts puts on the window of a page.
  // eslint-disable-next-line no-var
  var page: TestPage
}

const HTML =
  '<!doctype html><meta charset="utf-8"><title>Tasks</title><div id="root"></div><script type="module" src="/app.js"></script>'

// The bundled tests are in build/browser.
export const folder = join(dirname(fileURLToPath(import.meta.url)), '..', '..')

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
  return chromium.launch({
    executablePath: findBrowser(),
    // One process per site, and none in reserve, so that a test stops the process that it means.
    args: ['--no-sandbox', '--site-per-process', '--disable-features=SpareRendererForSitePerProcess,SpareRenderer'],
  })
}

/** A system, a browser and the pages of the tests in it. All end with the test, also where one of them does not start. */
export async function begin(of: TestContext): Promise<{ engine: Engine; browser: Browser; site: Site }> {
  const app = await bundle()
  let end = async () => {}
  of.after(() => end())
  const engine = await Engine.start()
  end = () => engine.stop()
  const browser = await launch()
  end = () => browser.close().finally(() => engine.stop())
  const site = await Site.open(browser, engine.url, app)
  end = () => site.close().finally(() => browser.close()).finally(() => engine.stop())
  return { engine, browser, site }
}

/** The scripts of a page by their paths: `/app.js`, and what it loads. */
export type Scripts = ReadonlyMap<string, string>

export async function bundle(entry = 'app.ts'): Promise<Scripts> {
  const { outputFiles } = await build({
    entryPoints: { app: join(folder, 'test/browser', entry) },
    bundle: true,
    splitting: true,
    // As apps load it.
    minify: true,
    format: 'esm',
    target: 'es2022',
    outdir: '/',
    write: false,
    define: { 'process.env.NODE_ENV': '"production"' },
  })
  return new Map(outputFiles.map(({ path, text }) => [`/${basename(path)}`, text]))
}

/** Serves the page beside the API, and fails the test on what a page reports. */
export class Site {
  readonly proxy: Proxy
  readonly context: BrowserContext
  readonly problems: string[] = []

  private constructor(proxy: Proxy, context: BrowserContext) {
    this.proxy = proxy
    this.context = context
  }

  static async open(browser: Browser, engineUrl: string, scripts: Scripts, html = HTML): Promise<Site> {
    const proxy = await Proxy.start(engineUrl)
    proxy.files = (path) => {
      const script = scripts.get(path)
      if (path === '/') return { type: 'text/html', body: html }
      return script === undefined ? null : { type: 'text/javascript', body: script }
    }
    return new Site(proxy, await browser.newContext())
  }

  async page(query = ''): Promise<Page> {
    const tab = await this.context.newPage()
    tab.on('pageerror', (error) => this.problems.push(`${error.name}: ${error.message}`))
    tab.on('console', (message) => {
      // A request that gets no answer, or a refusal, is reported by the browser; the tests cause both.
      if (message.type() === 'error' && !message.text().startsWith('Failed to load resource'))
        this.problems.push(message.text())
    })
    await tab.goto(`${this.proxy.url}/${query}`)
    return tab
  }

  /** A page of the tests, which has put `page` on its window. */
  async tab(query = ''): Promise<Page> {
    const tab = await this.page(query)
    await tab.waitForFunction(() => 'page' in globalThis)
    return tab
  }

  async close(): Promise<void> {
    await this.context.close()
    await this.proxy.stop()
    if (this.problems.length > 0) throw new Error(`a page reported: ${this.problems.join('; ')}`)
  }
}
