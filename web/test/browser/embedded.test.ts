import assert from 'node:assert/strict'
import { createServer, type IncomingHttpHeaders, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { after, before, describe, test } from 'node:test'
import type { Browser } from 'playwright-core'
import { Engine } from './engine'
import { Console, launch } from './harness'

/** Another site, whose page is one HTML text. */
class Site {
  readonly #server: Server
  readonly received: IncomingHttpHeaders[] = []
  readonly url: string

  private constructor(server: Server) {
    this.#server = server
    // Cookies of a host go to all of its ports: another host, which also leads here.
    this.url = `http://localhost:${(server.address() as AddressInfo).port}`
  }

  static async start(html: string): Promise<Site> {
    const server = createServer((incoming, outgoing) => {
      site.received.push(incoming.headers)
      outgoing.writeHead(200, { 'content-type': 'text/html' }).end(html)
    })
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    const site: Site = new Site(server)
    return site
  }

  async stop(): Promise<void> {
    this.#server.closeAllConnections()
    await new Promise((resolve) => this.#server.close(resolve))
  }
}

describe('the page in the program', () => {
  let engine: Engine
  let browser: Browser
  before(async () => {
    engine = await Engine.start()
    browser = await launch()
  })
  after(async () => {
    await Console.closeAll()
    await browser?.close()
    await engine?.stop()
  })

  test('a link opens it once', async () => {
    const link = await engine.link()
    const first = await Console.open(browser, engine, { link, embedded: true })
    await first.page.getByRole('heading', { name: 'Age of what clients see' }).waitFor()
    assert.equal(first.page.url(), `${engine.admin}/console/`)
    const second = await Console.open(browser, engine, { link, embedded: true })
    await second.page.getByLabel('Or sign in with the admin token').waitFor()
    assert.match(await second.page.getByRole('alert').innerText(), /link/)
    await second.close()
    await first.close()
  })

  test('every screen works under the policy of the program', async () => {
    const console = await Console.signedIn(browser, engine, { embedded: true })
    const links = console.page.getByRole('navigation', { name: 'Screens' }).getByRole('link')
    for (const link of await links.all()) {
      const title = (await link.innerText()).split('\n')[0] ?? ''
      await link.click()
      await console.page.getByRole('heading', { level: 1, name: title }).waitFor()
      await console.page.waitForFunction(() => !document.body.innerText.includes('Reading…'))
    }
    // Closing reports violations of the policy and errors.
    await console.close()
  })

  test('another site cannot frame it', async () => {
    const console = await Console.signedIn(browser, engine, { embedded: true })
    const site = await Site.start(`<iframe src="${engine.admin}/console/"></iframe>`)
    const page = await console.context.newPage()
    const refused = page.waitForEvent('console', (message) => message.text().includes('frame-ancestors'))
    const answered = page.waitForResponse(`${engine.admin}/console/`)
    await page.goto(site.url)
    await refused
    assert.equal((await answered).headers()['x-frame-options']?.toUpperCase(), 'DENY')
    const frame = page.frames().find((one) => one !== page.mainFrame())
    assert.equal(await frame?.locator('#root').count(), 0)
    await site.stop()
    await console.close()
  })

  test('the cookie of the session does not leave the host', async () => {
    const console = await Console.signedIn(browser, engine, { embedded: true })
    const { hostname, port } = new URL(engine.admin)
    const [cookie, ...others] = await console.context.cookies()
    assert.deepEqual(others, [])
    assert.deepEqual(
      { name: cookie?.name, domain: cookie?.domain, httpOnly: cookie?.httpOnly, secure: cookie?.secure, sameSite: cookie?.sameSite },
      { name: `__Host-posduif-console-${port}`, domain: hostname, httpOnly: true, secure: true, sameSite: 'Strict' },
    )
    assert.equal(await console.page.evaluate(() => document.cookie), '')

    const session = `${engine.admin}/admin/api/session`
    const site = await Site.start('')
    const page = await console.context.newPage()
    await page.goto(site.url)
    const sent = page.waitForRequest(session)
    await page.evaluate((url) => fetch(url, { credentials: 'include', mode: 'no-cors' }), session)
    assert.equal((await (await sent).allHeaders())['cookie'], undefined, 'a request of another site has no cookie')
    assert.equal((await (await sent).response())?.status(), 403)
    for (const headers of site.received) assert.equal(headers.cookie, undefined, 'another host receives no cookie')
    await site.stop()
    await console.close()
  })

  test('it is small and painted soon', async (context) => {
    const console = await Console.signedIn(browser, engine, { embedded: true })
    const { paint, files } = await console.page.evaluate(() => ({
      paint: performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? Infinity,
      files: [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]
        .map((entry) => entry as PerformanceResourceTiming)
        .filter((entry) => !new URL(entry.name).pathname.startsWith('/admin/'))
        .map((entry) => ({ name: new URL(entry.name).pathname, bytes: entry.encodedBodySize })),
    }))
    const total = files.reduce((sum, file) => sum + file.bytes, 0)
    for (const { name, bytes } of files) context.diagnostic(`${name}: ${bytes} bytes`)
    context.diagnostic(`in all ${total} bytes, first contentful paint after ${Math.round(paint)} ms`)
    // The program sends files as they are; build.mjs limits their compressed size.
    assert.ok(total > 0 && total <= 200 * 1024, `${total} bytes`)
    assert.ok(paint < 2000, `${paint} ms`)
    await console.close()
  })
})
