import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after } from 'node:test'
// It has the interface of better-sqlite3, without a compiler.
import wasm from 'node-sqlite3-wasm'
import { sqlite, type SqliteDriver } from '../../src/sqlite/index.js'
import { contract } from './contract.js'

const folder = mkdtempSync(join(tmpdir(), 'posduif-client-'))
let files = 0

after(() => rmSync(folder, { recursive: true, force: true }))

function open(): SqliteDriver {
  const database = new wasm.Database(join(folder, `${files}.sqlite`))
  return {
    exec: (sql) => database.exec(sql),
    prepare: (sql) => {
      const statement = database.prepare(sql)
      return { run: (...values) => statement.run(values), all: (...values) => statement.all(values) }
    },
    close: () => database.close(),
  }
}

contract(
  'sqlite',
  async () => {
    files += 1
    return sqlite(open())
  },
  async () => sqlite(open()),
)
