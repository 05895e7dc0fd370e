import { compareKeys, SPACES, type Entry, type Key, type Read, type Space, type Store } from '../store/store.js'

/** Keeps everything in this process, for tests and where there is no storage. */
export function memory(): Store {
  const spaces = new Map<Space, Map<string, Entry>>()
  const space = (name: Space): Map<string, Entry> => {
    const found = spaces.get(name) ?? new Map<string, Entry>()
    spaces.set(name, found)
    return found
  }
  const name = (key: Key): string => JSON.stringify(key)
  const readPart = (read: Read): Entry[] => {
    const entries = space(read.space)
    if ('keys' in read) {
      const found = new Map<string, Entry>()
      for (const key of read.keys) {
        const entry = entries.get(name(key))
        if (entry) found.set(name(key), entry)
      }
      return [...found.values()].map(copy)
    }
    const { table, after, limit } = read
    const part = [...entries.values()].filter(
      ({ key }) =>
        (table === undefined || (typeof key === 'object' && key[0] === table)) &&
        (after === undefined || compareKeys(key, after) > 0),
    )
    part.sort((one, other) => compareKeys(one.key, other.key))
    return part.slice(0, limit).map(copy)
  }
  return {
    kind: 'memory',
    sharedName: null,
    open: async () => {},
    read: async (reads) => reads.map(readPart),
    transaction: async (ops, checks) => {
      const meta = space('meta')
      if (checks.some(({ key, equals }) => (meta.get(name(key))?.value ?? 0) !== equals)) return false
      // Copied first: what cannot be stored must not leave a part behind.
      for (const op of ops.map((op) => (op.op === 'put' ? { ...op, value: structuredClone(op.value) } : op))) {
        if (op.op === 'clear') space(op.space).clear()
        else if (op.op === 'delete') space(op.space).delete(name(op.key))
        else space(op.space).set(name(op.key), { key: op.key, value: op.value })
      }
      return true
    },
    clear: async () => {
      for (const each of SPACES) space(each).clear()
    },
    close: () => {},
  }
}

function copy({ key, value }: Entry): Entry {
  return { key, value: structuredClone(value) }
}
