// The client as React Native runs it: a world with the globals of Hermes and of React Native's own libraries, and no others.
// Its fetch is whatwg-fetch over XMLHttpRequest: a response has no `body`, and none comes before its end.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { createContext, runInContext } from 'node:vm'
import { build } from 'esbuild'
import wasm from 'node-sqlite3-wasm'
import type * as Client from '../../src/index.js'
import type * as Sqlite from '../../src/sqlite/index.js'
import { Engine } from './engine.js'
import { Proxy } from './proxy.js'
import { bob, untilTitles, type TestClient } from './support.js'

type Entries = Pick<typeof Client, 'createClient' | 'table'> & Pick<typeof Sqlite, 'sqlite'>

const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..')

async function load(globals: object): Promise<Entries> {
  const { outputFiles } = await build({
    stdin: {
      contents: `export { createClient, table } from './src/index.js'; export { sqlite } from './src/sqlite/index.js'`,
      resolveDir: root,
    },
    bundle: true,
    format: 'iife',
    globalName: 'entries',
    target: 'es2022',
    write: false,
  })
  const world = createContext({ console, setTimeout, clearTimeout, queueMicrotask, AbortController, URLSearchParams, ...globals })
  runInContext(outputFiles[0]!.text, world)
  return runInContext('entries', world) as Entries
}

/** A GET that must not be cached gets a parameter, as whatwg-fetch adds it. */
async function fetchWhole(input: string, init: RequestInit): Promise<object> {
  const isFresh = (init.method ?? 'GET') === 'GET' && init.cache === 'no-store'
  const { status, ok, headers, ...response } = await fetch(isFresh ? `${input}${input.includes('?') ? '&' : '?'}_=1` : input, init).then(
    async (whole) => ({ status: whole.status, ok: whole.ok, headers: whole.headers, read: await whole.text() }),
  )
  return { status, ok, headers, text: async () => response.read }
}

class WholeResponse {
  text(): Promise<string> {
    return Promise.resolve('')
  }
}

test('client syncs in React Native, and has its stream by a WebSocket', async (of) => {
  const opened: string[] = []
  class Socket {
    static readonly OPEN = 1
    readyState = 0
    onclose: (event: { code: number }) => void = () => {}
    constructor(url: string) {
      opened.push(url)
    }
    close(): void {
      this.onclose({ code: 1000 })
    }
  }
  const engine = await Engine.start()
  of.after(() => engine.stop())
  const proxy = await Proxy.start(engine.url)
  of.after(() => proxy.stop())
  const crypto = { getRandomValues: (bytes: Uint8Array<ArrayBuffer>) => globalThis.crypto.getRandomValues(bytes) }
  const { createClient, table, sqlite } = await load({ crypto, fetch: fetchWhole, Response: WholeResponse, WebSocket: Socket })
  const database = new wasm.Database(':memory:')
  const store = sqlite({
    exec: (sql) => database.exec(sql),
    prepare: (sql) => {
      const statement = database.prepare(sql)
      return { run: (...values) => statement.run(values), all: (...values) => statement.all(values) }
    },
    close: () => database.close(),
  })
  const device = { name: 'Phone', type: 'mobile' } as const
  const phone = createClient({ url: proxy.url, store, tables: { tasks: table() }, device }) as unknown as TestClient
  try {
    assert.deepEqual({ ...(await phone.login(bob)) }, { ok: true })
    assert.equal(await phone.firstSync, true)
    const write = phone.tasks.create({ title: 'milk' })
    assert.deepEqual({ ...(await write.local) }, { ok: true })
    assert.equal((await write.server).status, 'applied')
    await untilTitles(phone, 'milk')
    await engine.sql("UPDATE tenant_demo.tasks SET title = 'bread', version = version + 1")
    while ((await phone.tasks.query().get())[0]?.title !== 'bread') await phone.sync()
    assert.match(opened[0] ?? '', /^ws:.*\/ws\?presence=false.*&ticket=/)
    assert.equal(proxy.count('GET', '/sse/'), 0)
  } finally {
    phone.close()
  }
})

test('client without random values says what React Native needs', async () => {
  const { createClient, table, sqlite } = await load({ fetch: fetchWhole, Response: WholeResponse })
  const store = sqlite({ exec: () => {}, prepare: () => assert.fail(), close: () => {} })
  assert.throws(() => createClient({ url: 'http://localhost', store, tables: { tasks: table() } }), /crypto\.getRandomValues/)
})
