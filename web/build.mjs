// Writes dist/console and dist/demo: one page each, with a script and a style sheet whose names have a hash of their
// content. Fails when the files of one page, compressed, exceed its limit. `node build.mjs console` builds one of the
// two; `--source-maps` adds maps beside the scripts, which the limit does not count.
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { gzipSync } from 'node:zlib'
import { build } from 'esbuild'

const root = fileURLToPath(new URL('.', import.meta.url))
const client = join(root, '../clients/typescript/src')

/** Bytes of all files of a page, each compressed by gzip. */
const LIMITS = { console: 120 * 1024, demo: 120 * 1024 }

const named = process.argv.slice(2).filter((argument) => !argument.startsWith('-'))
const unknown = named.find((name) => !(name in LIMITS))
if (unknown) {
  console.error(`build: there is no page "${unknown}": the pages are ${Object.keys(LIMITS).join(' and ')}`)
  process.exit(2)
}

let failed = false
for (const [app, limit] of Object.entries(LIMITS)) {
  if (named.length > 0 && !named.includes(app)) continue
  const out = join(root, 'dist', app)
  const entry = join(root, app, 'main.tsx')
  if (!existsSync(entry)) {
    rmSync(out, { recursive: true, force: true })
    continue
  }

  const { metafile, outputFiles } = await build({
    absWorkingDir: root,
    entryPoints: { [app]: entry },
    outdir: out,
    entryNames: '[name]-[hash]',
    assetNames: '[name]-[hash]',
    bundle: true,
    write: false,
    minify: true,
    format: 'esm',
    target: 'es2022',
    jsx: 'automatic',
    jsxImportSource: 'preact',
    legalComments: 'none',
    metafile: true,
    sourcemap: process.argv.includes('--source-maps') ? 'linked' : false,
    alias: {
      '@posduif/client/indexeddb': join(client, 'indexeddb/index.ts'),
      '@posduif/client/memory': join(client, 'memory/index.ts'),
      '@posduif/client': join(client, 'index.ts'),
    },
    define: { 'process.env.NODE_ENV': '"production"' },
  })
  const files = Object.keys(metafile.outputs)
    .map((file) => basename(file))
    .filter((file) => !file.endsWith('.map'))
  const script = files.find((file) => file.endsWith('.js'))
  const style = files.find((file) => file.endsWith('.css'))
  const html = page(app, script, style)
  // The old files go only after the new ones are there, so that the program can be built at any time.
  mkdirSync(out, { recursive: true })
  for (const file of outputFiles) writeFileSync(file.path, file.contents)
  writeFileSync(join(out, 'index.html'), html)
  const written = new Set([...outputFiles.map((file) => basename(file.path)), 'index.html'])
  for (const file of readdirSync(out)) if (!written.has(file)) rmSync(join(out, file), { recursive: true })
  mkdirSync(join(root, 'build'), { recursive: true })
  writeFileSync(join(root, 'build', `${app}.metafile.json`), JSON.stringify(metafile))

  let total = 0
  for (const file of ['index.html', ...files]) {
    const size = gzipSync(readFileSync(join(out, file)), { level: 9 }).length
    total += size
    console.log(`${kilobytes(size)}  dist/${app}/${file}`)
  }
  console.log(`${kilobytes(total)}  ${app}, of at most ${kilobytes(limit).trim()}`)
  if (total > limit) {
    console.error(`build: ${app} has ${total} bytes, the limit is ${limit}: build/${app}.metafile.json has its parts`)
    failed = true
  }
}
process.exit(failed ? 1 : 0)

/** The page's own index.html with the names of its files in it; it has no inline script and no inline style. */
function page(app, script, style) {
  const html = readFileSync(join(root, app, 'index.html'), 'utf8')
  for (const mark of ['%script%', '%style%']) {
    if (!html.includes(mark)) throw new Error(`${app}/index.html has no ${mark}`)
  }
  if (!script || !style) throw new Error(`${app}/main.tsx imports no style sheet`)
  return html.replace('%script%', `./${script}`).replace('%style%', `./${style}`)
}

function kilobytes(bytes) {
  return `${(bytes / 1024).toFixed(1)} KB`.padStart(9)
}
