// The invariants of the README, over the sources.
import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'

// The tests run from the package's folder.
const files = readdirSync('src', { recursive: true, encoding: 'utf8' })
  .filter((file) => /\.ts$/.test(file))
  .map((file) => ({ file, text: readFileSync(join('src', file), 'utf8').replace(/\/\*[\s\S]*?\*\/|\/\/.*$/gm, '') }))

function only(names: RegExp, pattern: RegExp, what: string): void {
  const others = files.filter(({ file, text }) => !names.test(file) && pattern.test(text)).map(({ file }) => file)
  assert.deepEqual(others, [], `${what} in`)
  assert.ok(
    files.some(({ file, text }) => names.test(file) && pattern.test(text)),
    `${what}: no file does it`,
  )
}

test('only the clock reads time and random values', () => {
  only(
    /^clock\.ts$/,
    /\bDate\.now\b|\bnew Date\(\)|\bMath\.random\b|\bcrypto\b|\bperformance\b/,
    'time or random values',
  )
  // IndexedDB bounds its own waits, so that an adapter needs no clock.
  only(/^(clock|indexeddb\/index)\.ts$/, /\bset(Timeout|Interval)\b/, 'timers')
})

test('only effects perform network requests', () => {
  // The devtools stand between the client and the platform.
  only(/^(effects|devtools\/faults)/, /\bfetch\(|new (WebSocket|Socket|EventSource)\b/, 'requests')
})

test('only tabs use locks, channels and events of the page', () => {
  only(
    /^(tabs\/|devtools\/faults)/,
    /new BroadcastChannel|locks\??\.request|\baddEventListener\(\s*'(online|page\w+|visibilitychange)'/,
    'locks or channels',
  )
})

test('only the adapter touches IndexedDB', () => {
  only(/^indexeddb\//, /\bindexedDB\b|\bIDB\w+/, 'IndexedDB')
})

test('machine imports only itself, items and JSON, and has no asynchronous code', () => {
  for (const { file, text } of files.filter(({ file }) => file.startsWith('machine/'))) {
    const imports = [...text.matchAll(/from '([^']+)'/g)].map(([, name]) => name!)
    for (const name of imports) assert.match(name, /^(\.\/\w+|\.\.\/outbox\/(item|overlay)|\.\.\/json)\.js$/, file)
    assert.doesNotMatch(text, /\basync\b|\bawait\b|\bPromise\b|\bconsole\b|\bglobalThis\b/, file)
  }
})

test('importing the package has no effect', async () => {
  for (const { file, text } of files) {
    const top = text
      .split('\n')
      .filter((line) => /^(?!import|export|const|let|class|function|type|async|\s|\}|\)|\]|\/|$|'|\*)/.test(line))
    assert.deepEqual(top, [], file)
  }
})
