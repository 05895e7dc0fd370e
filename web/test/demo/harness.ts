import { spawn, type ChildProcess } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { Browser, BrowserContext, Locator, Page } from 'playwright-core'
import type { StepId } from '../../demo/model/story'

const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8')

/** How long the page may take to show what a test waits for. */
export const WAIT_MS = 20_000

const START_MS = 60_000
const STOP_MS = 30_000

/** `posduif dev` with its demo, in a folder of its own; or the one that POSDUIF_DEMO_URL names. */
export class Dev {
  readonly url: string
  readonly #process: ChildProcess | null
  readonly #folder: string | null

  private constructor(url: string, process: ChildProcess | null, folder: string | null) {
    this.url = url
    this.#process = process
    this.#folder = folder
  }

  static async start(): Promise<Dev> {
    const running = process.env['POSDUIF_DEMO_URL']
    if (running) return new Dev(running, null, null)
    const binary = process.env['POSDUIF_BIN']
    if (!binary)
      throw new Error('POSDUIF_BIN names no program: run scripts/web --browser, or set it to a built posduif')
    const folder = mkdtempSync(join(tmpdir(), 'posduif-demo-'))
    const child = spawn(binary, ['dev', '--port', '0', '--data', join(folder, 'data'), '--json'], {
      cwd: folder,
      // Each test logs in.
      env: { ...process.env, POSDUIF__LIMITS__LOGIN_ATTEMPTS_MAX: '1000' },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    const log: string[] = []
    createInterface({ input: child.stderr! }).on('line', (line) => log.push(line))
    const { demo } = await new Promise<{ demo?: string }>((resolve, reject) => {
      const fail = (why: string): void => reject(new Error(`posduif dev ${why}:\n${log.slice(-20).join('\n')}`))
      const timer = setTimeout(() => fail(`was not ready within ${START_MS / 1000} s`), START_MS)
      createInterface({ input: child.stdout! }).once('line', (line) => {
        clearTimeout(timer)
        resolve(JSON.parse(line))
      })
      child.once('error', reject)
      child.once('exit', (code) => fail(`ended with ${code}`))
    })
    const dev = new Dev(demo ?? '', child, folder)
    if (demo) return dev
    await dev.stop()
    throw new Error(`posduif dev has printed no address of a demo:\n${log.slice(-20).join('\n')}`)
  }

  async stop(): Promise<void> {
    const child = this.#process
    if (!child || !this.#folder) return
    if (child.exitCode === null) {
      const ended = new Promise<void>((resolve, reject) => {
        const timer = setTimeout(() => reject(new Error(`posduif dev did not end within ${STOP_MS / 1000} s`)), STOP_MS)
        child.once('exit', () => {
          clearTimeout(timer)
          resolve()
        })
      })
      child.kill('SIGTERM')
      await ended
    }
    rmSync(this.#folder, { recursive: true, force: true })
  }
}

export type View = { readonly width: number; readonly height: number; readonly scheme: 'dark' | 'light' }

export const DESKTOP: View = { width: 1280, height: 900, scheme: 'dark' }

const CAPTIONS: Record<StepId, string> = {
  sql: 'One INSERT',
  offline: 'Offline',
  conflict: 'Conflict',
  lost: 'Lost answer',
  kill: 'kill -9',
  revoke: 'Revoked',
}

/** One visitor: a browser profile of its own. Closing it fails the test if a page reported anything. */
export class Visitor {
  readonly context: BrowserContext
  readonly problems: string[] = []
  /** Console errors that the test causes. */
  allowed: RegExp | null = null
  readonly #url: string

  private constructor(context: BrowserContext, url: string) {
    this.context = context
    this.#url = url
  }

  static async come(browser: Browser, dev: Dev, { width, height, scheme }: View = DESKTOP): Promise<Visitor> {
    const context = await browser.newContext({ viewport: { width, height }, colorScheme: scheme })
    context.setDefaultTimeout(WAIT_MS)
    const visitor = new Visitor(context, dev.url)
    await context.addInitScript(() => {
      document.addEventListener('securitypolicyviolation', (event) => {
        console.error(`CSP violation: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`)
      })
      addEventListener('unhandledrejection', (event) => {
        console.error(`unhandled rejection: ${String(event.reason)}`)
      })
    })
    return visitor
  }

  async open(): Promise<DemoPage> {
    const page = await this.context.newPage()
    page.on('pageerror', (error) => this.problems.push(`${error.name}: ${error.message}`))
    page.on('console', (message) => {
      const text = `${message.text()} ${message.location().url}`
      if (message.type() === 'error' && !this.allowed?.test(text)) this.problems.push(text)
    })
    await page.goto(this.#url)
    return new DemoPage(page)
  }

  async close(): Promise<void> {
    await this.context.close()
    if (this.problems.length > 0) throw new Error(`the page reported: ${this.problems.join('; ')}`)
  }
}

/** What a visitor sees and does. */
export class DemoPage {
  readonly page: Page
  readonly joe: Locator
  readonly bob: Locator
  readonly counters: Locator

  constructor(page: Page) {
    this.page = page
    this.joe = page.getByRole('region', { name: 'Joe’s phone', exact: true })
    this.bob = page.getByRole('region', { name: 'Bob’s browser', exact: true })
    this.counters = page.getByRole('region', { name: 'Checked against Postgres' })
  }

  /** Both devices have their rows and a stream. */
  async ready(): Promise<void> {
    for (const pane of [this.joe, this.bob]) {
      await pane.getByText(/^(SSE|WebSocket)$/).waitFor()
      await pane.locator('.task').first().waitFor()
    }
  }

  async show(step: StepId): Promise<void> {
    await this.page.locator('.captions ol').getByRole('button', { name: CAPTIONS[step] }).click()
  }

  async perform(step: StepId): Promise<void> {
    await this.show(step)
    await this.page.getByRole('button', { name: /^Do it/ }).click()
  }

  /** The outcome of the step that is shown, as soon as the page has observed it. */
  async outcome(): Promise<string> {
    return (await this.page.locator('.caption .outcome').textContent()) ?? ''
  }

  badge(pane: Locator): Locator {
    return pane.getByLabel('Changes that wait in the outbox')
  }

  /** Waits until the badge of a pane shows a number. */
  async badgeShows(pane: Locator, count: number): Promise<void> {
    await this.badge(pane).filter({ hasText: new RegExp(`^${count}$`) }).waitFor()
  }

  async count(name: string): Promise<string> {
    return (await this.counters.locator('.figure', { hasText: name }).locator('dd').innerText()).trim()
  }

  /** The counters after the next check of both devices. */
  async checked(): Promise<readonly string[]> {
    await this.counters.getByText(/[01] s ago\. (Times|$)/).waitFor()
    return Promise.all(['lost', 'doubled', 'out of order'].map((name) => this.count(name)))
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
  async picture(name: string, fullPage = false): Promise<void> {
    const folder = process.env['POSDUIF_SCREENSHOTS']
    if (!folder) return
    mkdirSync(folder, { recursive: true })
    await this.page.screenshot({ path: join(folder, `${name}.png`), fullPage })
  }
}
