// The suite of storages against the browser's own IndexedDB.
import { indexeddb } from '../../src/indexeddb/index.js'
import { contract } from '../unit/contract.js'
import { runAll } from './shim.js'

let count = 0

contract(
  'indexeddb',
  async () => indexeddb(`contract ${++count}`),
  async () => indexeddb(`contract ${count}`),
)

Object.assign(window, { runAll })
