import type { Draft } from './draft.js'
import type { Change, RowId } from './event.js'
import { overtakeMissing, type Via } from './rows.js'
import type { Device } from './state.js'

/** For whom the device reads, besides the tenant. */
export type Audiences = { readonly user: string; readonly groups: Set<string> }

export function audiencesOf({ userId, groups }: Device, isReset: boolean): Audiences {
  return { user: `user:${userId}`, groups: new Set(isReset ? [] : groups) }
}

/** A row of a table that no group sees is seen by all who receive it. */
export function isSeen(via: Via, { user, groups }: Audiences): boolean {
  return !via || via.some((audience) => audience === user || audience === 'tenant' || groups.has(audience))
}

/** The group of a `join` or `leave`, as `via` names it. */
export function groupName({ group, id }: Change): string {
  return `${group}:${id}`
}

/**
 * What the stored rows say of a group is from before the user joined it, and the stream has nothing of what changed
 * meanwhile. Its pages name it again.
 */
export function forgetAudience(draft: Draft, rows: readonly RowId[], { groups }: Audiences, group: string): void {
  if (groups.has(group)) return
  for (const [table, id] of [...rows, ...draft.rows.values()]) {
    const entry = draft.entry(table, id)
    const via = entry?.via?.filter((audience) => audience !== group)
    // Of a row that no other audience sees there is nothing to keep apart.
    if (entry && via && via.length > 0) draft.put(table, id, { ...entry, via })
  }
}

/**
 * Deletes the rows that no audience of the device sees, after a group was left. Rows that only results have brought go as
 * well: a batch brings them if they are still seen, but not in a version from before the result.
 */
export function forgetUnseen(draft: Draft, rows: readonly RowId[], audiences: Audiences): void {
  for (const [table, id] of [...rows, ...draft.rows.values()]) {
    const entry = draft.entry(table, id)
    if (!entry || isSeen(entry.via, audiences)) continue
    const { via, own, generation, isDeleted } = entry
    const isOwn = via?.length === 0 && generation === draft.state.device.generation
    if (isOwn && isDeleted) continue
    const isMarked = isOwn && own !== undefined
    draft.put(table, id, isMarked ? { row: { id }, generation, own, via, isDeleted: true } : null)
  }
  // An upload without an answer may have changed rows of the group, which batches do not bring any more.
  overtakeMissing(draft)
}

/** Stores the groups as a batch has left them, and reports what is different. */
export function storeGroups(draft: Draft, { groups }: Audiences): void {
  const before = draft.state.device.groups
  const joined = [...groups].filter((name) => !before.includes(name))
  const left = before.filter((name) => !groups.has(name))
  if (joined.length + left.length === 0) return
  draft.device({ groups: [...groups] })
  for (const [name, list] of [
    ['joined', joined],
    ['left', left],
  ] as const) {
    for (const audience of list) {
      const end = audience.indexOf(':')
      draft.notify({ name, group: audience.slice(0, end), id: audience.slice(end + 1) })
    }
  }
}
