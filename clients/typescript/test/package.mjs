// Checks the packed tarball, not the sources: its contents, its exports and types, and that importing it has no effect.
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, mkdirSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const folder = mkdtempSync(join(tmpdir(), 'posduif-package-'))
const run = (command, args, options = {}) => execFileSync(command, args, { cwd: root, encoding: 'utf8', ...options })

try {
  const [{ filename, files }] = JSON.parse(run('npm', ['pack', '--json', '--pack-destination', folder]))
  const names = files.map(({ path }) => path)
  for (const name of [
    'README.md',
    'CHANGELOG.md',
    'LICENSE-MIT',
    'LICENSE-APACHE',
    'dist/index.js',
    'dist/index.d.ts',
  ]) {
    assert.ok(names.includes(name), `the package lacks ${name}`)
  }
  assert.deepEqual(
    names.filter((name) => /test|\.tsx?$/.test(name) && !name.endsWith('.d.ts')),
    [],
  )
  const tarball = join(folder, filename)
  const bin = join(root, 'node_modules/.bin')
  run(join(bin, 'publint'), ['--strict', tarball], { stdio: 'inherit' })
  run(join(bin, 'attw'), ['--profile', 'esm-only', tarball], { stdio: 'inherit' })

  // As an app has it.
  const modules = join(folder, 'node_modules')
  mkdirSync(join(modules, '@posduif'), { recursive: true })
  run('tar', ['-xzf', tarball, '-C', folder])
  symlinkSync(join(folder, 'package'), join(modules, '@posduif/client'))
  symlinkSync(join(root, 'node_modules/react'), join(modules, 'react'))
  const { exports: entries } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
  const paths = Object.keys(entries).filter((entry) => !entry.endsWith('.json'))
  writeFileSync(
    join(folder, 'import.mjs'),
    `const timers = process.getActiveResourcesInfo().length
     for (const name of ${JSON.stringify(paths)}) await import('@posduif/client' + name.slice(1))
     if (process.getActiveResourcesInfo().length > timers) throw new Error('importing the package starts something')`,
  )
  run(process.execPath, [join(folder, 'import.mjs')])
  console.log(
    `${names.length} files, ${paths.length} entry points, ${readdirSync(join(folder, 'package', 'dist')).length} names in dist`,
  )
} finally {
  rmSync(folder, { recursive: true, force: true })
}
