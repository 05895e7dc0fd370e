import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createCollection } from '@tanstack/db'
import { createClient, table } from '../../src/index.js'
import { memory } from '../../src/memory/index.js'
import { toCollectionOptions } from '../../src/tanstack-db/index.js'

type Task = { readonly id: string; readonly title: string }

function open() {
  const client = createClient({
    url: 'http://127.0.0.1:9',
    store: memory(),
    tables: { tasks: table<Task>() },
    live: 'off',
  })
  const collection = createCollection(toCollectionOptions(client.tasks, { id: 'tasks' }))
  const titles = () => [...collection.values()].map(({ title }) => title).sort()
  return { client, collection, titles }
}

test('collection shows the rows of the table and what is written to it', async () => {
  const { client, collection, titles } = open()
  await client.tasks.create({ title: 'before' }).local
  await collection.preload()
  assert.deepEqual(titles(), ['before'])
  const id = 'f3a1c9e2-0000-7000-8000-000000000001'
  await collection.insert({ id, title: 'milk' }).isPersisted.promise
  assert.deepEqual(titles(), ['before', 'milk'])
  assert.equal(client.status.getSnapshot().outbox.waiting, 2)
  await collection.update(id, (draft) => {
    ;(draft as { title: string }).title = 'soy'
  }).isPersisted.promise
  assert.deepEqual(titles(), ['before', 'soy'])
  const [, , edit] = await client.outbox.list()
  assert.deepEqual([edit?.op, edit?.row], ['edit', { title: 'soy' }])
  await collection.delete(id).isPersisted.promise
  assert.deepEqual(titles(), ['before'])
  client.close()
})

test('change elsewhere reaches the collection', async () => {
  const { client, collection, titles } = open()
  await collection.preload()
  const changed = new Promise<void>((resolve) => collection.subscribeChanges(() => resolve()))
  await client.tasks.create({ title: 'by the client' }).local
  await changed
  assert.deepEqual(titles(), ['by the client'])
  client.close()
})

test('change that cannot be stored is withdrawn from the collection', async () => {
  const { client, collection, titles } = open()
  await collection.preload()
  client.close()
  const insert = collection.insert({ id: 'x', title: 'never' })
  await assert.rejects(insert.isPersisted.promise, /LOCAL_/)
  assert.deepEqual(titles(), [])
})
