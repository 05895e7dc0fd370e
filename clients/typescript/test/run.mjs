// Bundles the tests of a folder and runs them with Node's test runner: node test/run.mjs unit [pattern]
import { spawn } from 'node:child_process'
import { statSync, readdirSync, rmSync } from 'node:fs'
import { dirname, isAbsolute, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'

const STORIES = process.env['POSDUIF_MODEL_CASES']

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const [folder = 'unit', pattern = ''] = process.argv.slice(2)
const files = readdirSync(join(root, 'test', folder)).filter(
  (file) => file.endsWith('.test.ts') && file.includes(pattern),
)
if (files.length === 0) {
  console.error(`test/${folder}: no test file has "${pattern}" in its name`)
  process.exit(1)
}
const problem = folder === 'unit' ? null : problemOf(process.env['POSDUIF_BIN'])
if (problem) {
  console.error(`test/${folder} needs an engine: ${problem}: run scripts/client, or name the absolute path of a built posduif`)
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
  packages: 'external',
  sourcemap: 'inline',
  outExtension: { '.js': '.mjs' },
})
const tests = files.map((file) => join(out, file.replace(/\.ts$/, '.mjs')))
const runner = spawn(
  process.execPath,
  // Random stories take as long as there are many.
  ['--enable-source-maps', '--test', '--test-reporter=spec', ...(STORIES ? [] : ['--test-timeout=900000']), ...tests],
  { stdio: 'inherit', cwd: root },
)
runner.on('exit', (code) => process.exit(code ?? 1))

/** Each test starts the program in a folder of its own. */
function problemOf(program) {
  if (!program) return 'POSDUIF_BIN names no program'
  if (!isAbsolute(program)) return `POSDUIF_BIN=${program} is relative`
  const found = statSync(program, { throwIfNoEntry: false })
  return found?.isFile() && found.mode & 0o111 ? null : `POSDUIF_BIN=${program} is no program`
}
