// Prints what the package adds to a minified page, in bytes of gzip -9, and fails above the limits.
import { readFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import { gzipSync } from 'node:zlib'
import { build } from 'esbuild'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const core = `import { createClient, table } from './dist/index.js'; import { indexeddb } from './dist/indexeddb/index.js'; export { createClient, table, indexeddb }`
const react = `${core}; export { useQuery, useStatus, usePresence, useWrite } from './dist/react/index.js'`

/** What a page loads at once, what it loads later, and what all of it is in one file, where a bundler does not split. */
async function sizes(contents) {
  const options = {
    stdin: { contents, resolveDir: root },
    absWorkingDir: root,
    outdir: 'page',
    bundle: true,
    minify: true,
    format: 'esm',
    target: 'es2022',
    write: false,
    metafile: true,
    external: ['react'],
  }
  const { outputFiles, metafile } = await build({ ...options, splitting: true })
  const gzip = (files) => files.reduce((sum, file) => sum + gzipSync(file.contents, { level: 9 }).length, 0)
  const first = new Set(['page/stdin.js'])
  for (const name of first) {
    for (const { path, kind, external } of metafile.outputs[name].imports)
      if (kind === 'import-statement' && !external) first.add(path)
  }
  const isFirst = ({ path }) => first.has(relative(root, path))
  return {
    atOnce: gzip(outputFiles.filter(isFirst)),
    later: gzip(outputFiles.filter((file) => !isFirst(file))),
    inOneFile: gzip((await build(options)).outputFiles),
  }
}

async function size(contents) {
  return (await sizes(contents)).atOnce
}

const limits = JSON.parse(readFileSync(join(root, 'test/size.json'), 'utf8'))
const client = await sizes(core)
const found = {
  'core and indexeddb': client.atOnce,
  'loaded later': client.later,
  'all in one file': client.inOneFile,
  react: (await size(react)) - client.atOnce,
}
found.sqlite = await size(`export { sqlite } from './dist/sqlite/index.js'`)
found.memory = await size(`export { memory } from './dist/memory/index.js'`)
found['tanstack-db'] = await size(`export { toCollectionOptions } from './dist/tanstack-db/index.js'`)
found.devtools = await size(`export { devtools } from './dist/devtools/index.js'`)
let isOver = false
for (const [name, bytes] of Object.entries(found)) {
  const limit = limits[name]
  if (bytes > limit) isOver = true
  console.log(`${name.padEnd(20)} ${String(bytes).padStart(6)} of ${limit} bytes${bytes > limit ? ': too large' : ''}`)
}
process.exit(isOver ? 1 : 0)
