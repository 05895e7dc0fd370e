import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'

// The bundled tests are in build/unit.
const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..')

const files = ['api', 'console', 'parts'].flatMap((folder) =>
  readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
    .filter((name) => /\.tsx?$/.test(name))
    .map((name) => ({ name: `${folder}/${name}`, text: readFileSync(join(root, folder, name), 'utf8') })),
)

/** Files outside of the allowed ones that contain the pattern. */
function others(pattern: RegExp, allowed: string[]): string[] {
  return files.filter(({ name, text }) => pattern.test(text) && !allowed.includes(name)).map(({ name }) => name)
}

test('only the chart touches uPlot', () => {
  assert.deepEqual(others(/from 'uplot'/, ['parts/chart.tsx']), [])
})

test('only the client sends requests, and only figures and trace open streams', () => {
  assert.deepEqual(others(/\bfetch\(/, ['api/client.ts']), [])
  assert.deepEqual(others(/new EventSource\(/, ['api/figures.ts', 'api/trace.ts']), [])
})

test('only the clock reads time and starts timers', () => {
  const globals = /Date\.now\(|performance\.now\(|setTimeout\(|setInterval\(|Math\.random\(/
  assert.deepEqual(others(globals, ['api/clock.ts']), [])
})

test('nothing makes HTML of a text, and no style is an attribute', () => {
  assert.deepEqual(others(/innerHTML|insertAdjacentHTML|setAttribute\('style'/, []), [])
  assert.deepEqual(others(/dangerouslySetInnerHTML/, []), [])
})

test('the pages have neither inline script nor inline style', () => {
  const html = readFileSync(join(root, 'console/index.html'), 'utf8')
  assert.equal(/<script(?![^>]* src=)|<style|\sstyle=|\son\w+=/.test(html), false)
  assert.deepEqual(html.match(/https?:\/\/(?!www\.w3\.org\/2000\/svg)[^\s"']+/g), null)
})

test('tests wait for events and never sleep', () => {
  const folder = join(root, 'test/browser')
  const sleeping = readdirSync(folder).filter((name) =>
    /waitForTimeout|setTimeout\(resolve/.test(readFileSync(join(folder, name), 'utf8')),
  )
  assert.deepEqual(sleeping, [])
})
