import { createServer, request as sendRequest, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { connect, type AddressInfo, type Socket } from 'node:net'

/** What becomes of a request. */
export type Fault =
  | 'pass'
  /** It never arrives. */
  | 'lose request'
  /** The engine handles it, and the response is lost. */
  | 'lose answer'
  /** The response ends in the middle. */
  | 'cut answer'
  /** Something else answers. */
  | { readonly status: number; readonly headers?: Record<string, string>; readonly body?: string }

export type Seen = { readonly method: string; readonly path: string; readonly body: string }

/** Stands between a client and the engine, as the network does, and serves the files of a page. */
export class Proxy {
  readonly seen: Seen[] = []
  /** Open event streams and WebSockets. */
  streams = 0
  /** Decides about each request of the API. */
  fault: (method: string, path: string) => Fault = () => 'pass'
  files: (path: string) => { type: string; body: string | Uint8Array } | null = () => null
  readonly #server: Server
  readonly #sockets = new Set<Socket>()
  readonly #target: URL
  #isDown = false

  private constructor(target: string) {
    this.#target = new URL(target)
    this.#server = createServer((incoming, outgoing) => void this.#handle(incoming, outgoing))
    this.#server.on('upgrade', (incoming, socket, head) => this.#upgrade(incoming, socket as Socket, head))
    this.#server.on('connection', (socket) => {
      if (this.#isDown) return socket.destroy()
      this.#sockets.add(socket)
      socket.on('close', () => this.#sockets.delete(socket))
      return undefined
    })
  }

  static async start(target: string): Promise<Proxy> {
    const proxy = new Proxy(target)
    await new Promise<void>((resolve) => proxy.#server.listen(0, '127.0.0.1', resolve))
    return proxy
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`
  }

  /** The network is gone: open connections break, and new ones too. */
  down(): void {
    this.#isDown = true
    for (const socket of this.#sockets) socket.destroy()
  }

  up(): void {
    this.#isDown = false
  }

  /** Open connections break; new ones do not. */
  cut(): void {
    for (const socket of this.#sockets) socket.destroy()
  }

  /** The requests of a method and path so far. */
  count(method: string, path: string): number {
    return this.seen.filter((seen) => seen.method === method && seen.path.startsWith(path)).length
  }

  async stop(): Promise<void> {
    this.down()
    await new Promise((resolve) => this.#server.close(resolve))
  }

  async #handle(incoming: IncomingMessage, outgoing: ServerResponse): Promise<void> {
    const chunks: Buffer[] = []
    for await (const chunk of incoming) chunks.push(chunk as Buffer)
    const body = Buffer.concat(chunks)
    const [method, path] = [incoming.method ?? '', incoming.url ?? '']
    const file = this.files(path.split('?')[0]!)
    if (file) {
      outgoing.writeHead(200, { 'content-type': file.type, 'cache-control': 'no-store' })
      outgoing.end(file.body)
      return
    }
    this.seen.push({ method, path, body: body.toString() })
    const fault = this.fault(method, path)
    if (typeof fault === 'object') {
      outgoing.writeHead(fault.status, { 'content-type': 'application/json', ...fault.headers })
      outgoing.end(fault.body ?? '{}')
      return
    }
    if (fault === 'lose request') return void incoming.socket.destroy()
    const headers = { ...incoming.headers, host: this.#target.host }
    const forward = sendRequest(
      { host: this.#target.hostname, port: this.#target.port, method, path, headers },
      (response) => {
        if (fault === 'lose answer') {
          response.resume()
          response.on('end', () => incoming.socket.destroy())
          return
        }
        const isStream = path.startsWith('/sse/') && response.statusCode === 200
        if (isStream) this.#track(incoming.socket)
        outgoing.writeHead(response.statusCode ?? 502, response.headers)
        // A page must not wait for the first event.
        outgoing.flushHeaders()
        if (fault === 'cut answer') {
          response.once('data', (chunk: Buffer) => {
            outgoing.write(chunk.subarray(0, Math.floor(chunk.length / 2)), () => incoming.socket.destroy())
          })
          response.on('end', () => incoming.socket.destroy())
        } else response.pipe(outgoing)
        outgoing.on('close', () => response.destroy())
      },
    )
    forward.on('error', () => incoming.socket.destroy())
    forward.end(body)
  }

  #upgrade(incoming: IncomingMessage, socket: Socket, head: Buffer): void {
    const path = incoming.url ?? ''
    this.seen.push({ method: 'GET', path, body: '' })
    if (this.fault('GET', path) !== 'pass') return void socket.destroy()
    const upstream = connect(Number(this.#target.port), this.#target.hostname, () => {
      const headers = { ...incoming.headers, host: this.#target.host, origin: this.#target.origin }
      const lines = Object.entries(headers).map(([name, value]) => `${name}: ${String(value)}`)
      upstream.write(`GET ${path} HTTP/1.1\r\n${lines.join('\r\n')}\r\n\r\n`)
      upstream.write(head)
      upstream.pipe(socket)
      socket.pipe(upstream)
    })
    this.#track(socket)
    upstream.on('error', () => socket.destroy())
    socket.on('error', () => upstream.destroy())
    socket.on('close', () => upstream.destroy())
  }

  #track(socket: Socket): void {
    this.streams += 1
    socket.once('close', () => (this.streams -= 1))
  }
}
