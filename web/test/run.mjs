// Bundles the tests of a folder and runs them with Node's test runner: node test/run.mjs unit [pattern]
import { spawn } from 'node:child_process'
import { readdirSync, rmSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const client = join(root, '../clients/typescript/src')
const [folder = 'unit', pattern = ''] = process.argv.slice(2)
const files = readdirSync(join(root, 'test', folder)).filter(
  (file) => /\.test\.tsx?$/.test(file) && file.includes(pattern),
)
if (files.length === 0) {
  console.error(`test/${folder}: no test file has "${pattern}" in its name`)
  process.exit(1)
}
const out = join(root, 'build', folder)
rmSync(out, { recursive: true, force: true })
await build({
  entryPoints: files.map((file) => join(root, 'test', folder, file)),
  outdir: out,
  bundle: true,
  platform: 'node',
  format: 'esm',
  target: 'node20',
  jsx: 'automatic',
  jsxImportSource: 'preact',
  external: ['preact', 'uplot', 'playwright-core', 'axe-core', 'esbuild'],
  alias: {
    '@posduif/client/indexeddb': join(client, 'indexeddb/index.ts'),
    '@posduif/client/memory': join(client, 'memory/index.ts'),
    '@posduif/client': join(client, 'index.ts'),
  },
  sourcemap: 'inline',
  outExtension: { '.js': '.mjs' },
})
const tests = files.map((file) => join(out, file.replace(/\.tsx?$/, '.mjs')))
const runner = spawn(
  process.execPath,
  // One file at a time: each starts its own engine and its own browser.
  ['--enable-source-maps', '--test', '--test-concurrency=1', '--test-reporter=spec', '--test-timeout=600000', ...tests],
  { stdio: 'inherit', cwd: root },
)
runner.on('exit', (code) => process.exit(code ?? 1))
