import assert from 'node:assert/strict'
import { test } from 'node:test'
import { IDBFactory, IDBKeyRange } from 'fake-indexeddb'
import { indexeddb } from '../../src/indexeddb/index.js'
import { StoreError } from '../../src/store/store.js'
import { contract } from './contract.js'

// The adapter names the global; the browser tests run the same suite against Chromium.
Object.assign(globalThis, { IDBKeyRange })

let factory = new IDBFactory()

contract(
  'indexeddb',
  async () => {
    factory = new IDBFactory()
    return indexeddb('contract', { factory })
  },
  async () => indexeddb('contract', { factory }),
)

test('newer build in another tab closes the database and is reported', async () => {
  const store = indexeddb('app', { factory })
  const lost = new Promise((resolve) => void store.open(resolve))
  await store.read([{ space: 'meta' }])
  const upgraded = new Promise<void>((resolve, reject) => {
    const request = factory.open('app', 99)
    request.onsuccess = () => resolve()
    request.onerror = () => reject(request.error)
  })
  assert.equal(await lost, 'outdated')
  await upgraded
  await assert.rejects(store.read([{ space: 'meta' }]), StoreError)
})

test('storage that does not answer rejects within its bound', async () => {
  const silent = { open: () => ({}) } as unknown as IDBFactory
  const store = indexeddb('app', { factory: silent, timeoutMs: 20 })
  await assert.rejects(
    store.open(() => {}),
    (error: StoreError) => error.code === 'LOCAL_STORE_TIMEOUT',
  )
})
