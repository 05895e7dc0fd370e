import type { Item } from './item.js'

/** What differs between two outboxes: most steps add items at the end, or remove some at the beginning. */
export function difference(before: readonly Item[], after: readonly Item[]): [removed: Item[], added: Item[]] {
  let start = 0
  while (start < before.length && start < after.length && before[start] === after[start]) start += 1
  let [end, other] = [before.length, after.length]
  while (end > start && other > start && before[end - 1] === after[other - 1]) {
    end -= 1
    other -= 1
  }
  return [before.slice(start, end), after.slice(start, other)]
}

/** Items as they were read, or the former objects of those that have not changed. */
export function reuse(read: readonly Item[], former: readonly Item[]): readonly Item[] {
  const known = new Map(former.map((item) => [item.key, item]))
  let isSame = read.length === former.length
  const items = read.map((item, place) => {
    const same = known.get(item.key)
    const isUnchanged =
      same?.seq === item.seq &&
      same.sent === item.sent &&
      same.baseSeq === item.baseSeq &&
      same.baseVersion === item.baseVersion
    if (!isUnchanged || former[place] !== same) isSame = false
    return isUnchanged ? same : item
  })
  return isSame ? former : items
}
