// A driver of this client for `posduif kit` (docs/conformance.md has its commands), with its storage in a SQLite file:
//
//   npm run build && posduif kit run --driver 'node clients/typescript/test/driver.mjs'
//
// Before Node 22, WebSockets need `node --experimental-websocket`. POSDUIF_CLIENT names another build than dist/.
import { mkdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { pathToFileURL } from 'node:url'
import wasm from 'node-sqlite3-wasm'

const FEATURES = ['restart', 'write', 'messages', 'groups', 'live', 'clock', 'silence']
if (globalThis.WebSocket) FEATURES.push('websocket')

/** Turns of the event loop without a request, after which nothing is due. */
const QUIET_TURNS = 25

const root = import.meta.dirname ?? new URL('.', import.meta.url).pathname
const dist = pathToFileURL(`${process.env.POSDUIF_CLIENT ?? join(root, '../dist')}/`)
const { createClient, table } = await import(new URL('index.js', dist).href)
// Otherwise it is loaded while a command waits for what is due.
const part = await import(new URL('sync/index.js', dist).href)
const { sqlite } = await import(new URL('sqlite/index.js', dist).href)

/** Time passes by `advance` only. */
let now = 1_800_000_000_000
let timers = []

const clock = {
  now: () => now,
  schedule: (run, ms) => {
    const timer = { at: now + Math.max(ms, 0), run }
    if (ms <= 0) setImmediate(() => timer.run())
    else timers.push(timer)
    return () => {
      timer.run = () => {}
      timers = timers.filter((other) => other !== timer)
    }
  },
  random: () => Math.random(),
  uuid: () => crypto.randomUUID(),
}

let inFlight = 0

/** Counts the requests whose answer has not been read. A stream is read as it comes. */
async function countedFetch(input, init) {
  inFlight += 1
  try {
    const response = await fetch(input, init)
    if (response.headers.get('content-type') === 'text/event-stream') return response
    const body = await response.arrayBuffer()
    const { status, headers } = response
    return new Response(status === 204 ? null : body, { status, headers })
  } finally {
    inFlight -= 1
  }
}

/**
 * Counts the WebSockets that are being opened. One whose handshake was refused is closed, as the standard says: that of
 * Node before 24 (undici before 7) is left as it is after its event `error`.
 */
const CountedWebSocket =
  globalThis.WebSocket &&
  class extends globalThis.WebSocket {
    constructor(...given) {
      super(...given)
      inFlight += 1
      let isOpening = true
      const done = () => {
        if (isOpening) inFlight -= 1
        isOpening = false
      }
      for (const name of ['open', 'close']) this.addEventListener(name, done)
      const close = () => {
        if (this.readyState === this.CONNECTING) this.dispatchEvent(Object.assign(new Event('close'), { code: 1006 }))
      }
      this.addEventListener('error', () => setImmediate(close))
    }
  }

async function idle() {
  for (let quiet = 0; quiet < QUIET_TURNS; quiet += 1) {
    await new Promise((resolve) => setImmediate(resolve))
    if (inFlight > 0) {
      quiet = 0
      await new Promise((resolve) => setTimeout(resolve, 1))
    }
  }
}

async function advance(ms) {
  const target = now + ms
  for (;;) {
    const [next] = timers.filter(({ at }) => at <= target).sort((one, other) => one.at - other.at)
    if (!next) break
    timers = timers.filter((other) => other !== next)
    now = Math.max(now, next.at)
    next.run()
    await idle()
  }
  now = target
  await idle()
}

/** The outcome, or that there is none yet although nothing is due. */
async function outcome(promise) {
  const done = await Promise.race([promise, idle().then(() => null)])
  return done ?? { ok: false, message: 'no answer yet; the client repeats the request' }
}

let given
let client

function start(live) {
  const file = join(given.store, 'client.sqlite')
  // Left behind by a process that was killed.
  rmSync(`${file}.lock`, { recursive: true, force: true })
  const database = new wasm.Database(file)
  const store = sqlite({
    exec: (sql) => database.exec(sql),
    prepare: (sql) => {
      const statement = database.prepare(sql)
      return { run: (...values) => statement.run(values), all: (...values) => statement.all(values) }
    },
    close: () => database.close(),
  })
  const tables = { tasks: table(), marks: table() }
  client = createClient({ url: given.url, store, tables, live, sync: async () => part, environment: { fetch: countedFetch, clock, WebSocket: CountedWebSocket } })
}

async function restart(live) {
  client.close()
  await idle()
  timers = []
  start(live)
  await idle()
  return { ok: true }
}

const commands = {
  init: async (command) => {
    given = command
    mkdirSync(given.store, { recursive: true })
    start('off')
    await idle()
    return { ok: true, client: '@posduif/client', features: FEATURES, known: [] }
  },
  enroll: ({ url }) => outcome(client.enroll(url)),
  sync: () => outcome(client.sync()),
  write: ({ table: name, id, row }) => client[name].create({ ...row, id }).local,
  edit: ({ table: name, id, row }) => client[name].edit(id, row).local,
  delete: ({ table: name, id }) => client[name].delete(id).local,
  read: ({ id }) => client.messages.read(id).local,
  open: ({ over }) => restart(over ?? 'sse'),
  close: () => restart('off'),
  advance: async ({ ms }) => {
    await advance(ms)
    return { ok: true }
  },
  wait: async () => {
    await idle()
    return { ok: true }
  },
  rows: async ({ table: name }) => ({ ok: true, rows: await client[name].query().get() }),
  outbox: async () => {
    const entries = await client.outbox.list()
    return {
      ok: true,
      waiting: entries.filter(({ state }) => state === 'waiting' || state === 'sent'),
      refused: entries.filter(({ state }) => state === 'rejected'),
    }
  },
  status: async () => {
    const { state, live } = client.status.getSnapshot()
    return { ok: true, state, live: live === 'sse' || live === 'websocket' ? 'open' : 'closed' }
  },
}

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line)
  if (command.do === 'bye') break
  // A command may come while another one waits for an answer of the server.
  commands[command.do](command).then(
    (answer) => process.stdout.write(`${JSON.stringify({ n: command.n, ...answer })}\n`),
    (error) => process.stdout.write(`${JSON.stringify({ n: command.n, ok: false, message: String(error) })}\n`),
  )
}
client?.close()
process.exit(0)
