// Stories: what users do on their devices and in SQL, and what becomes of the requests meanwhile.
import fc from 'fast-check'

/** What becomes of one request of a device. */
export type Fate =
  | 'pass'
  /** It never arrives. */
  | 'lose request'
  /** It is done, and the answer is lost. */
  | 'lose answer'
  /** It arrives twice, and the second answer comes back. */
  | 'twice'
  /** It is done, and arrives once more when the story says so. */
  | 'linger'
  /** The process ends before it is sent. */
  | 'die before'
  /** The process ends before the answer is stored. */
  | 'die after'
  /** An upload of several changes is refused for its size. */
  | 'too large'
  /** The server is busy. */
  | 'busy'

export type TableName = 'tasks' | 'messages'

/** Numbers choose among what there is when it comes to it. */
export type Op =
  | { readonly do: 'create'; readonly phone: number; readonly table: TableName }
  | { readonly do: 'edit'; readonly phone: number; readonly table: TableName; readonly row: number; readonly times: number }
  | { readonly do: 'delete'; readonly phone: number; readonly table: TableName; readonly row: number }
  | { readonly do: 'read'; readonly phone: number; readonly row: number }
  /** All devices of a user change one row before any of them uploads. */
  | { readonly do: 'quarrel'; readonly user: number; readonly table: TableName; readonly row: number; readonly times: number }
  /** An upload gets no answer, SQL changes the same row, and the device receives that before it sends again. */
  | { readonly do: 'overtake'; readonly phone: number; readonly table: TableName; readonly row: number; readonly times: number }
  /** A device goes back to before its last upload, and its user does something else than then. */
  | { readonly do: 'relapse'; readonly phone: number; readonly table: TableName; readonly row: number; readonly times: number }
  | { readonly do: 'sync'; readonly phone: number; readonly fates: readonly Fate[] }
  /** A request that lingered arrives. */
  | { readonly do: 'late'; readonly phone: number }
  /** The user decides a conflict or a refusal, or withdraws a change. */
  | { readonly do: 'decide'; readonly phone: number; readonly entry: number; readonly keepsMine: boolean }
  /** A user decides all conflicts on another page. */
  | { readonly do: 'decide elsewhere'; readonly user: number }
  | { readonly do: 'reload' | 'crash' | 'offline' | 'online' | 'save' | 'go back' | 'revoke'; readonly phone: number }
  | { readonly do: 'insert'; readonly table: TableName; readonly from: number; readonly count: number }
  | { readonly do: 'change'; readonly table: TableName; readonly row: number }
  | { readonly do: 'remove'; readonly table: TableName; readonly row: number; readonly how: 'soft' | 'hard' | 'again' }
  /** A task gets another owner, or another one who sees it. */
  | { readonly do: 'give'; readonly row: number; readonly owner: number; readonly isSeenByBoth: boolean }
  | { readonly do: 'lose inbox'; readonly user: number }
  /** All that is committed reaches the streams. */
  | { readonly do: 'publish' }
  /** All devices of all users take a snapshot. */
  | { readonly do: 'resync' }

const number = fc.nat({ max: 255 })
const table = fc.constantFrom<TableName>('tasks', 'tasks', 'messages')
const times = fc.integer({ min: 1, max: 4 })

const fate = fc.oneof(
  { weight: 7, arbitrary: fc.constant<Fate>('pass') },
  { weight: 3, arbitrary: fc.constantFrom<Fate>('lose request', 'lose answer', 'lose answer') },
  { weight: 2, arbitrary: fc.constantFrom<Fate>('twice', 'linger') },
  { weight: 2, arbitrary: fc.constantFrom<Fate>('die before', 'die after') },
  { weight: 1, arbitrary: fc.constantFrom<Fate>('too large', 'busy') },
)

function op<Name extends Op['do'], Fields extends object>(
  weight: number,
  names: readonly Name[],
  fields: { [K in keyof Fields]: fc.Arbitrary<Fields[K]> },
): { weight: number; arbitrary: fc.Arbitrary<Op> } {
  return { weight, arbitrary: fc.record({ do: fc.constantFrom(...names), ...fields }) as unknown as fc.Arbitrary<Op> }
}

export const story: fc.Arbitrary<readonly Op[]> = fc.array(
  fc.oneof(
    op(40, ['create'], { phone: number, table }),
    op(60, ['edit'], { phone: number, table, row: number, times }),
    op(15, ['delete'], { phone: number, table, row: number }),
    op(15, ['read'], { phone: number, row: number }),
    op(30, ['quarrel'], { user: number, table, row: number, times }),
    op(25, ['overtake'], { phone: number, table, row: number, times }),
    op(12, ['relapse'], { phone: number, table, row: number, times }),
    op(110, ['sync'], { phone: number, fates: fc.array(fate, { maxLength: 5 }) }),
    op(10, ['late'], { phone: number }),
    op(30, ['decide'], { phone: number, entry: number, keepsMine: fc.boolean() }),
    op(15, ['decide elsewhere'], { user: number }),
    op(30, ['reload', 'crash', 'offline', 'online', 'save', 'go back'], { phone: number }),
    op(5, ['revoke'], { phone: number }),
    op(35, ['insert'], { table, from: number, count: fc.integer({ min: 1, max: 6 }) }),
    op(40, ['change'], { table, row: number }),
    op(20, ['remove'], { table, row: number, how: fc.constantFrom('soft', 'hard', 'again') }),
    op(15, ['give'], { row: number, owner: number, isSeenByBoth: fc.boolean() }),
    op(15, ['lose inbox'], { user: number }),
    op(20, ['publish'], {}),
    op(2, ['resync'], {}),
  ),
  { minLength: 8, maxLength: 40, size: 'max' },
)
