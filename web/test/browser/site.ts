import { existsSync, readFileSync } from 'node:fs'
import { createServer, request, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'

const REQUEST_MS = 120_000

/**
 * The console as it was built last, before an engine: files come from web/dist with the headers that the engine sends
 * for its own, all other requests go to the engine. So the tests need no new build of the engine.
 */
export class Site {
  readonly #server: Server
  readonly #admin: URL
  readonly #files: string
  readonly url: string

  private constructor(server: Server, admin: URL, files: string) {
    this.#server = server
    this.#admin = admin
    this.#files = files
    this.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  }

  static async start(admin: string, files: string): Promise<Site> {
    if (!existsSync(join(files, 'index.html'))) throw new Error(`${files} has no console: run scripts/web`)
    const { status } = await fetch(`${admin}/console/`, { signal: AbortSignal.timeout(REQUEST_MS) })
    if (status !== 200) throw new Error('the engine has no console: run scripts/web, then cargo build')
    const server = createServer((incoming, outgoing) => site.#answer(incoming, outgoing))
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    const site: Site = new Site(server, new URL(admin), files)
    return site
  }

  async stop(): Promise<void> {
    this.#server.closeAllConnections()
    await new Promise((resolve) => this.#server.close(resolve))
  }

  #answer(incoming: IncomingMessage, outgoing: ServerResponse): void {
    const path = (incoming.url ?? '/').split('?', 1)[0] ?? '/'
    const name = /^\/console\/([\w.-]*)$/.exec(path)?.[1]
    const file = name === undefined ? null : join(this.#files, name || 'index.html')
    const isFile = file !== null && existsSync(file)
    const forwarded = request(
      {
        host: this.#admin.hostname,
        port: this.#admin.port,
        // The engine has the same page, with files of other names.
        path: isFile ? '/console/' : incoming.url,
        method: incoming.method,
        headers: incoming.headers,
        timeout: REQUEST_MS,
      },
      (answer) => {
        answer.on('close', () => answer.complete || outgoing.destroy())
        if (file === null || !isFile || answer.statusCode !== 200) {
          outgoing.writeHead(answer.statusCode ?? 502, answer.headers)
          answer.pipe(outgoing)
          return
        }
        answer.resume()
        const headers = { ...answer.headers, 'content-type': typeOf(file) }
        delete headers['content-length']
        delete headers['content-encoding']
        outgoing.writeHead(200, headers)
        outgoing.end(readFileSync(file))
      },
    )
    // An engine that does not answer closes the connection, as a proxy in front of it would not.
    forwarded.on('error', () => outgoing.destroy())
    outgoing.on('close', () => forwarded.destroy())
    incoming.pipe(forwarded)
  }
}

function typeOf(file: string): string {
  if (file.endsWith('.js')) return 'text/javascript; charset=utf-8'
  return file.endsWith('.css') ? 'text/css; charset=utf-8' : 'text/html; charset=utf-8'
}
