// What every storage adapter must do. Each adapter's tests call this.
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { StoreError, type Op, type Store } from '../../src/store/store.js'

const nothing = () => {}

function put(space: Op['space'], key: Extract<Op, { op: 'put' }>['key'], value: unknown): Op {
  return { op: 'put', space, key, value }
}

/** `create` returns a new, empty storage each time; `reopen` one with the contents of the last created. */
export function contract(name: string, create: () => Promise<Store>, reopen: (() => Promise<Store>) | null): void {
  const opened = async (): Promise<Store> => {
    const store = await create()
    await store.open(nothing)
    return store
  }

  describe(`${name} store`, () => {
    test('transaction stores all operations in their order', async () => {
      const store = await opened()
      const ops: Op[] = [
        put('rows', ['t', 'a'], { n: 1 }),
        put('rows', ['t', 'a'], { n: 2 }),
        put('outbox', 1, { text: 'ä\u2028' }),
        put('meta', 'gone', 1),
        { op: 'delete', space: 'meta', key: 'gone' },
        { op: 'delete', space: 'meta', key: 'never there' },
      ]
      assert.equal(await store.transaction(ops, [], 'strict'), true)
      const read = await store.read([{ space: 'rows' }, { space: 'outbox' }, { space: 'meta' }])
      assert.deepEqual(read, [[{ key: ['t', 'a'], value: { n: 2 } }], [{ key: 1, value: { text: 'ä\u2028' } }], []])
      store.close()
    })

    test('transaction with an unmet check stores nothing', async () => {
      const store = await opened()
      assert.equal(await store.transaction([put('meta', 'term', 3)], [{ key: 'term', equals: 0 }], 'strict'), true)
      const late = await store.transaction(
        [put('rows', ['t', 'a'], 1), { op: 'clear', space: 'meta' }],
        [
          { key: 'term', equals: 3 },
          { key: 'rev', equals: 1 },
        ],
        'relaxed',
      )
      assert.equal(late, false)
      assert.deepEqual(await store.read([{ space: 'rows' }, { space: 'meta' }]), [[], [{ key: 'term', value: 3 }]])
      store.close()
    })

    test('of concurrent transactions with one check only one is applied', async () => {
      const store = await opened()
      const attempts = [1, 2, 3, 4].map((n) =>
        store.transaction([put('meta', 'rev', 1), put('outbox', n, n)], [{ key: 'rev', equals: 0 }], 'relaxed'),
      )
      assert.equal((await Promise.all(attempts)).filter(Boolean).length, 1)
      assert.equal((await store.read([{ space: 'outbox' }]))[0]?.length, 1)
      store.close()
    })

    test('value that cannot be stored leaves nothing behind', async () => {
      const store = await opened()
      const ops = [put('meta', 'a', 1), put('meta', 'b', cyclicFunction())]
      await assert.rejects(store.transaction(ops, [], 'strict'))
      await assert.rejects(store.transaction(ops, [{ key: 'none', equals: 0 }], 'strict'))
      assert.deepEqual(await store.read([{ space: 'meta' }]), [[]])
      assert.equal(await store.transaction([put('meta', 'a', 2)], [], 'strict'), true)
      store.close()
    })

    test('ranges are ordered and bounded', async () => {
      const store = await opened()
      const ids = ['10', '9', 'a', 'Z', 'ü', '']
      const seqs = [2, 10, 9, 1000]
      const ops = [
        ...ids.map((id) => put('rows', ['tasks', id], id)),
        put('rows', ['task', 'x'], 0),
        put('rows', ['tasks2', 'x'], 0),
        put('rows', ['taskt', 'x'], 0),
        ...seqs.map((seq) => put('outbox', seq, seq)),
      ]
      await store.transaction(ops, [], 'relaxed')
      const [rows, outbox] = await store.read([{ space: 'rows', table: 'tasks' }, { space: 'outbox' }])
      assert.deepEqual(
        rows?.map(({ value }) => value),
        ['', '10', '9', 'Z', 'a', 'ü'],
      )
      assert.deepEqual(
        outbox?.map(({ key }) => key),
        [2, 9, 10, 1000],
      )
      const [page, rest] = await store.read([
        { space: 'rows', table: 'tasks', limit: 2 },
        { space: 'rows', table: 'tasks', after: ['tasks', '10'], limit: 2 },
      ])
      assert.deepEqual(
        [page, rest].map((part) => part?.map(({ value }) => value)),
        [
          ['', '10'],
          ['9', 'Z'],
        ],
      )
      // All rows, page by page.
      const all: unknown[] = []
      for (let after: readonly [string, string] | undefined; ;) {
        const [entries = []] = await store.read([{ space: 'rows', limit: 4, ...(after && { after }) }])
        all.push(...entries.map(({ key }) => key))
        if (entries.length < 4) break
        after = entries.at(-1)!.key as [string, string]
      }
      assert.equal(all.length, ids.length + 3)
      assert.equal(new Set(all.map((key) => JSON.stringify(key))).size, ids.length + 3)
      store.close()
    })

    test('named keys are read in one turn and missing ones left out', async () => {
      const store = await opened()
      await store.transaction([put('rows', ['t', 'a'], 1), put('rows', ['t', 'b'], 2)], [], 'relaxed')
      const [some, none] = await store.read([
        {
          space: 'rows',
          keys: [
            ['t', 'b'],
            ['t', 'x'],
            ['t', 'a'],
          ],
        },
        { space: 'meta', keys: [] },
      ])
      assert.deepEqual(some?.map(({ value }) => value).sort(), [1, 2])
      assert.deepEqual(none, [])
      store.close()
    })

    test('many named rows are read wherever they lie', async () => {
      const store = await opened()
      const id = (n: number): readonly [string, string] => ['t', String(n).padStart(3, '0')]
      const all = Array.from({ length: 300 }, (_, n) => n)
      await store.transaction(
        [...all.map((n) => put('rows', id(n), n)), put('rows', ['t,0', '1'], -1)],
        [],
        'relaxed',
      )
      const near = all.slice(10, 60)
      const far = all.filter((n) => n % 7 === 0)
      const beyond = all.map((n) => n + 1000)
      // Each of them behind each other one: an adapter may choose its way by what it has found before.
      for (const wanted of [near, far, near, beyond, near, far, beyond, beyond, far]) {
        const keys = [...wanted.map(id), id(999), id(999), ['t', '0,1'] as const].reverse()
        const [found = []] = await store.read([{ space: 'rows', keys }])
        assert.deepEqual(
          found.map(({ value }) => Number(value)).sort((one, other) => one - other),
          wanted.filter((n) => n < 300),
        )
        assert.deepEqual(found.filter(({ key, value }) => String(key) !== String(id(Number(value)))), [])
      }
      store.close()
    })

    test('what a reader gets is not changed by later writes', async () => {
      const store = await opened()
      await store.transaction([put('meta', 'a', { list: [1] })], [], 'relaxed')
      const [before] = await store.read([{ space: 'meta' }])
      ;(before?.[0]?.value as { list: number[] }).list.push(2)
      assert.deepEqual(await store.read([{ space: 'meta' }]), [[{ key: 'a', value: { list: [1] } }]])
      store.close()
    })

    test('clear deletes everything', async () => {
      const store = await opened()
      await store.transaction(
        [put('rows', ['t', 'a'], 1), put('outbox', 1, 1), put('results', 'k', 1), put('meta', 'm', 1)],
        [],
        'strict',
      )
      await store.clear()
      assert.deepEqual(
        await store.read([{ space: 'rows' }, { space: 'outbox' }, { space: 'results' }, { space: 'meta' }]),
        [[], [], [], []],
      )
      store.close()
    })

    if (reopen) {
      test('what was stored is there after the storage is opened again', async () => {
        const store = await opened()
        await store.transaction([put('rows', ['t', 'a'], { n: 1 }), put('meta', 'term', 2)], [], 'strict')
        store.close()
        const again = await reopen()
        await again.open(nothing)
        assert.deepEqual(await again.read([{ space: 'rows' }]), [[{ key: ['t', 'a'], value: { n: 1 } }]])
        assert.equal(await again.transaction([], [{ key: 'term', equals: 2 }], 'strict'), true)
        again.close()
      })

      test('storage that failed or was closed rejects with a code', async () => {
        const store = await opened()
        await assert.rejects(store.transaction([put('meta', 'a', cyclicFunction())], [], 'strict'), StoreError)
        store.close()
      })
    }
  })
}

/** Neither structured clone nor JSON accepts it. */
function cyclicFunction(): unknown {
  const value: { self?: unknown; run: () => void } = { run: () => {} }
  value.self = value
  return value
}
