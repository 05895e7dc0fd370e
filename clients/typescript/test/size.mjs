// Prints what the package adds to a minified page, in bytes of gzip -9, and fails above the limits.
import { readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { gzipSync } from 'node:zlib'
import { build } from 'esbuild'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const core = `import { createClient, table } from './dist/index.js'; import { indexeddb } from './dist/indexeddb/index.js'; export { createClient, table, indexeddb }`
const react = `${core}; export { useQuery, useStatus, usePresence, useWrite } from './dist/react/index.js'`

async function size(contents) {
  const { outputFiles } = await build({
    stdin: { contents, resolveDir: root },
    bundle: true,
    minify: true,
    format: 'esm',
    target: 'es2022',
    write: false,
    external: ['react'],
  })
  return gzipSync(outputFiles[0].contents, { level: 9 }).length
}

const limits = JSON.parse(readFileSync(join(root, 'test/size.json'), 'utf8'))
const sizes = { 'core and indexeddb': await size(core) }
sizes.react = (await size(react)) - sizes['core and indexeddb']
sizes.sqlite = await size(`export { sqlite } from './dist/sqlite/index.js'`)
sizes.memory = await size(`export { memory } from './dist/memory/index.js'`)
sizes['tanstack-db'] = await size(`export { toCollectionOptions } from './dist/tanstack-db/index.js'`)
sizes.devtools = await size(`export { devtools } from './dist/devtools/index.js'`)
let isOver = false
for (const [name, bytes] of Object.entries(sizes)) {
  const limit = limits[name]
  if (bytes > limit) isOver = true
  console.log(`${name.padEnd(20)} ${String(bytes).padStart(6)} of ${limit} bytes${bytes > limit ? ': too large' : ''}`)
}
process.exit(isOver ? 1 : 0)
