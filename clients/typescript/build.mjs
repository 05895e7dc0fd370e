// Writes dist/: one JavaScript file for each entry point with shared parts beside them, and the declarations.
import { execFileSync } from 'node:child_process'
import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { build } from 'esbuild'

const root = import.meta.dirname ?? new URL('.', import.meta.url).pathname

rmSync(join(root, 'dist'), { recursive: true, force: true })
await build({
  absWorkingDir: root,
  entryPoints: [
    'index',
    'sync/index',
    'indexeddb/index',
    'memory/index',
    'sqlite/index',
    'react/index',
    'tanstack-db/index',
    'devtools/index',
  ].map((name) => `src/${name}.ts`),
  outdir: 'dist',
  outbase: 'src',
  bundle: true,
  splitting: true,
  chunkNames: 'shared-[hash]',
  format: 'esm',
  target: 'es2022',
  packages: 'external',
})
execFileSync(process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), '-p', join(root, 'tsconfig.json')], {
  stdio: 'inherit',
})
