import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'

// The tests run from the package's folder.
const readme = readFileSync('README.md', 'utf8')
const limits = JSON.parse(readFileSync('test/size.json', 'utf8')) as Record<string, number>

test('README has the limits of sizes that are checked', () => {
  const bytes = [...readme.matchAll(/([\d,]+) at most/g)].map(([, number]) => Number(number!.replace(',', '')))
  assert.deepEqual(bytes.sort(), Object.values(limits).sort())
})

test('README gives the reason of each development dependency', () => {
  const { devDependencies } = JSON.parse(readFileSync('package.json', 'utf8')) as {
    devDependencies: Record<string, string>
  }
  for (const name of Object.keys(devDependencies).filter((each) => !each.startsWith('@types/react')))
    assert.ok(readme.includes(name), name)
})

test('README names the codes of the client', () => {
  const sources = ['client.ts', 'outcome.ts', 'status.ts', 'sync/index.ts', 'store/store.ts', 'machine/write.ts', 'outbox/writes.ts']
  const codes = new Set(sources.flatMap((file) => readFileSync(`src/${file}`, 'utf8').match(/LOCAL_[A-Z_]+/g) ?? []))
  const internal = ['LOCAL_UNKNOWN', 'LOCAL_SENT', 'LOCAL_TIMEOUT', 'LOCAL_NOT_ENROLLED']
  for (const code of codes) if (!internal.includes(code)) assert.ok(readme.includes(code), code)
})

test('lock file names no registry', () => {
  assert.doesNotMatch(readFileSync('package-lock.json', 'utf8'), /"resolved"|https?:\/\/registry/)
})
