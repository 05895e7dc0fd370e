// Random stories of two users, each with devices that lose answers, die, reload, go back to a copy, are offline and write,
// beside SQL that writes the same rows, in which inboxes get lost. At the end of each story
//
// - every device has what a query on Postgres has,
// - every change that was accepted is in its row or in a conflict, once,
// - every conflict has another side, and is open on the device that lost it until its user has decided,
// - no change has overwritten one that its user had not seen, unless a conflict keeps it,
// - every item that came again got its first result.
//
// tests/model.rs does the same with the reference phone. The suite always has the same stories, so that only a change makes it
// fail; look for more with others, and replay one with the seed and the path that a failure prints:
//
//   POSDUIF_MODEL_SEED=$RANDOM POSDUIF_MODEL_CASES=3000 node test/run.mjs engine model
//   POSDUIF_MODEL_SEED=7 POSDUIF_MODEL_PATH=12:0:3 node test/run.mjs engine model
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { Phone, textOf, type Deed, type Row } from './phone.js'
import { Psql, Stage, type User } from './stage.js'
import { story, type Op, type TableName } from './story.js'

const SEED = Number(process.env['POSDUIF_MODEL_SEED'] ?? 7)

/** Stories of both tests together. */
const CASES = Number(process.env['POSDUIF_MODEL_CASES'] ?? 300)

const PATH = process.env['POSDUIF_MODEL_PATH']

/** Stories that go on side by side in one test, each of two users of its own. */
const WORKERS = PATH ? 1 : 8

/** Of each user of a story. */
const PHONES = [2, 1]

/** What the server refuses because of what happened elsewhere. */
const REFUSALS = new Set(['NOT_FOUND', 'FORBIDDEN', 'CONFLICT', 'DEPENDS_ON_FAILED', 'GONE'])

/** How long a failing story is made smaller. */
const SHRINK_MS = 60_000

/** How long a device may take to have what is published. */
const WAIT_MS = 20_000

type Note = {
  id: string
  op: string
  version: number
  text: string | null
  old_text: string | null
  is_new_text: boolean
  /** More than a receipt. */
  is_edit: boolean
  is_read: boolean
}

type Kept = {
  op: string
  id: string
  text: string | null
  server_text: string | null
  device_id: string | null
  is_open: boolean
  base: number
  version: number | null
}

class Story {
  readonly #stage: Stage
  readonly #psql: Psql
  readonly #users: readonly [User, User]
  readonly #phones: Phone[]
  readonly #tally: Map<string, number>
  /** Rows that SQL deleted, and how often. */
  readonly #removed = new Map<string, number>()
  /** Rows of the story, by their table. */
  readonly #ids: Record<TableName, string[]> = { tasks: [], messages: [] }

  /** In some stories one device has a stream, and syncs by itself. */
  constructor(stage: Stage, psql: Psql, users: readonly [User, User], tally: Map<string, number>, isLive: boolean) {
    this.#stage = stage
    this.#psql = psql
    this.#users = users
    this.#tally = tally
    this.#phones = PHONES.flatMap((count, user) =>
      Array.from({ length: count }, (_, place) => new Phone(stage.engine.url, users[user]!, isLive && place === 1)),
    )
  }

  async play(ops: readonly Op[]): Promise<void> {
    try {
      // All have something to change.
      const [one, other] = this.#users
      for (const table of ['tasks', 'messages'] as const) {
        await this.#insert(table, crypto.randomUUID(), one.id, other.id)
        await this.#insert(table, crypto.randomUUID(), other.id, one.id)
      }
      await this.#stage.published(this.#psql)
      for (const phone of this.#phones) await phone.sync([])
      for (const op of ops) {
        this.#count(op.do)
        await this.#happen(op)
      }
      await this.#end()
    } finally {
      for (const { client } of this.#phones) client.close()
      await this.#cleanUp()
    }
  }

  #count(what: string): void {
    this.#tally.set(what, (this.#tally.get(what) ?? 0) + 1)
  }

  async #happen(op: Op): Promise<void> {
    const phone = 'phone' in op ? this.#phones[op.phone % this.#phones.length]! : null
    const user = 'user' in op ? this.#users[op.user % 2]! : null
    switch (op.do) {
      case 'create':
        return this.#create(phone!, op.table)
      case 'edit':
        return this.#edit(phone!, op.table, await this.#rowOf(phone!, op.table, op.row), op.times)
      case 'delete': {
        const row = await this.#rowOf(phone!, op.table, op.row)
        if (!row) return
        const deed = { table: op.table, op: op.do, text: null, seen: textOf(row) } as const
        return phone!.done(phone!.client[op.table].delete(row.id), deed)
      }
      case 'read': {
        const rows = await phone!.rows('messages')
        const row = rows[op.row % Math.max(rows.length, 1)]
        if (!row) return
        const deed = { table: 'messages', op: op.do, text: null, seen: textOf(row) } as const
        return phone!.done(phone!.client.messages.read(row.id), deed)
      }
      case 'quarrel': {
        const phones = this.#phones.filter((each) => each.user === user)
        const id = (await this.#rowOf(phones[0]!, op.table, op.row))?.id
        for (const each of phones) {
          const row = (await each.rows(op.table)).find((other) => other.id === id)
          await this.#edit(each, op.table, row, op.times)
        }
        for (const each of phones) await each.sync([])
        return
      }
      case 'overtake': {
        const row = await this.#rowOf(phone!, op.table, op.row)
        await this.#edit(phone!, op.table, row, op.times)
        await phone!.sync(['lose answer'])
        const { isOnline } = phone!
        phone!.isOnline = false
        if (row) await this.#change(op.table, `'${row.id}'`)
        await this.#stage.published(this.#psql)
        phone!.isOnline = isOnline
        await phone!.sync(['lose request'])
        return void (await phone!.sync([]))
      }
      case 'relapse': {
        await phone!.save()
        await this.#edit(phone!, op.table, await this.#rowOf(phone!, op.table, op.row), 1)
        await phone!.sync([])
        await phone!.goBack()
        return this.#edit(phone!, op.table, await this.#rowOf(phone!, op.table, op.row), op.times)
      }
      case 'sync':
        return void (await phone!.sync(op.fates))
      case 'late':
        return phone!.late()
      case 'decide':
        return phone!.decide(op.entry, op.keepsMine)
      case 'decide elsewhere':
        return this.#stage.engine.resolveConflicts(user!.token)
      case 'reload':
      case 'crash':
        return phone!.reload(op.do === 'crash')
      case 'offline':
      case 'online':
        phone!.isOnline = op.do === 'online'
        return
      case 'save':
        return phone!.save()
      case 'go back':
        return phone!.goBack()
      case 'revoke':
        return void (await this.#sql(
          `UPDATE tenant_demo.devices SET revoked_at = now() WHERE user_id = '${phone!.user.id}' AND revoked_at IS NULL`,
        ))
      case 'insert': {
        const [from, to] = op.from % 2 ? this.#users : [this.#users[1], this.#users[0]]
        for (let n = 0; n < op.count; n += 1) await this.#insert(op.table, crypto.randomUUID(), from.id, to.id)
        return
      }
      case 'change':
        return this.#change(op.table, this.#pick(op.table, op.row))
      case 'remove':
        return this.#remove(op)
      case 'give': {
        const [owner, other] = op.owner % 2 ? this.#users : [this.#users[1], this.#users[0]]
        const assignee = op.isSeenByBoth ? `'${other.id}'` : 'NULL'
        return void (await this.#sql(
          `UPDATE tenant_demo.tasks SET owner_id = '${owner.id}', assignee_id = ${assignee}, version = version + 1
           WHERE id = ${this.#pick('tasks', op.row)}`,
        ))
      }
      case 'lose inbox':
        return void (await this.#stage.redis.send('DEL', `posduif:{demo}:inbox:${user!.id}`))
      case 'publish':
        return this.#stage.published(this.#psql)
      case 'resync':
        return this.#stage.resync()
    }
  }

  async #create(phone: Phone, table: TableName): Promise<void> {
    const text = this.#stage.text()
    const other = this.#users.find(({ id }) => id !== phone.user.id)!
    const write =
      table === 'tasks'
        ? phone.client.tasks.create({ title: text, assignee_id: other.id } as Partial<Row & { owner_id: string }>)
        : phone.client.messages.create({ content: text, recipient_id: other.id })
    this.#ids[table].push(write.id)
    await phone.done(write, { table, op: 'create', text, seen: null })
  }

  async #edit(phone: Phone, table: TableName, row: Row | undefined, times: number): Promise<void> {
    if (!row) return
    let seen = textOf(row)
    for (let n = 0; n < times; n += 1) {
      const text = this.#stage.text()
      const write =
        table === 'tasks' ? phone.client.tasks.edit(row.id, { title: text }) : phone.client.messages.edit(row.id, { content: text })
      await phone.done(write, { table, op: 'edit', text, seen })
      seen = text
    }
  }

  async #change(table: TableName, id: string): Promise<void> {
    const column = table === 'tasks' ? 'version = version + 1, title' : 'content'
    await this.#sql(`UPDATE tenant_demo.${table} SET ${column} = '${this.#stage.text()}' WHERE id = ${id}`)
  }

  /** A row that a user sees, mostly one that is theirs to change. */
  async #rowOf(phone: Phone, table: TableName, number: number): Promise<Row | undefined> {
    const rows = await phone.rows(table)
    const own = rows.filter((row) => Object.values(row).includes(phone.user.id) && ownerOf(row) === phone.user.id)
    const list = own.length > 0 && number % 8 !== 0 ? own : rows
    return list[number % Math.max(list.length, 1)]
  }

  #pick(table: TableName, number: number): string {
    const ids = this.#ids[table]
    const id = ids[number % Math.max(ids.length, 1)]
    return id ? `'${id}'` : 'NULL'
  }

  async #insert(table: TableName, id: string, from: string, to: string): Promise<void> {
    const columns = table === 'tasks' ? 'id, owner_id, assignee_id, title' : 'id, sender_id, recipient_id, content'
    await this.#sql(
      `INSERT INTO tenant_demo.${table} (${columns}) VALUES ('${id}', '${from}', '${to}', '${this.#stage.text()}')`,
    )
    this.#ids[table].push(id)
  }

  async #remove({ table, row, how }: Op & { do: 'remove' }): Promise<void> {
    const id = this.#pick(table, row)
    if (how === 'soft') {
      const version = table === 'tasks' ? ', version = version + 1' : ''
      await this.#sql(
        `UPDATE tenant_demo.${table} SET deleted_at = now()${version} WHERE id = ${id} AND deleted_at IS NULL`,
      )
      return
    }
    const [gone] = await this.#psql.rows<{ id: string }>(`DELETE FROM tenant_demo.${table} WHERE id = ${id} RETURNING id`)
    if (!gone) return
    this.#removed.set(gone.id, (this.#removed.get(gone.id) ?? 0) + 1)
    if (how === 'again') await this.#insert(table, gone.id, this.#users[0].id, this.#users[1].id)
  }

  #sql(text: string): Promise<string[]> {
    return this.#psql.run(text)
  }

  // ------------------------------------------------------------------------------------------------------ the end

  async #end(): Promise<void> {
    for (const phone of this.#phones) phone.isOnline = true
    const since = performance.now()
    for (const [place, phone] of this.#phones.entries()) {
      for (;;) {
        const isDone = (await phone.sync([])) && phone.client.status.getSnapshot().outbox.waiting === 0
        if (isDone) break
        assert.ok(performance.now() - since < WAIT_MS, `device ${place} does not finish: ${this.#stateOf(phone)}`)
        await new Promise((resolve) => setTimeout(resolve, 5))
      }
    }
    for (;;) {
      const { shocks } = this.#stage
      await this.#stage.published(this.#psql)
      try {
        await this.#compare()
        break
      } catch (error) {
        // A snapshot that begins between two comparisons tells old things again before it tells the new.
        const isShaken = shocks % 2 === 1 || shocks !== this.#stage.shocks
        if (!isShaken || performance.now() - since > WAIT_MS) throw error
      }
    }
    await this.#checkDeeds()
  }

  #stateOf({ client }: Phone): string {
    return JSON.stringify(client.status.getSnapshot())
  }

  async #compare(): Promise<void> {
    for (const [place, phone] of this.#phones.entries()) {
      await phone.sync([])
      const { state, outbox, error } = phone.client.status.getSnapshot()
      assert.deepEqual([state, outbox.waiting, error], ['stream', 0, null], `device ${place}: ${this.#stateOf(phone)}`)
      const user = `'${phone.user.id}'`
      const wanted = await this.#psql.rows<{ kind: string; id: string; text: string }>(
        `SELECT 'tasks' AS kind, id::text, title || ' ' || version || ' ' || owner_id AS text FROM tenant_demo.tasks
         WHERE ${user} IN (owner_id, assignee_id) AND deleted_at IS NULL
         UNION ALL SELECT 'messages', id::text, content || ' ' || version || ' ' || sender_id || ' ' || (read_at IS NULL)
         FROM tenant_demo.messages WHERE ${user} IN (sender_id, recipient_id) AND deleted_at IS NULL
         UNION ALL SELECT 'conflicts', id::text, coalesce(message_id::text, row_id) FROM tenant_demo.message_conflicts
         WHERE resolved_at IS NULL AND user_id = ${user}`,
      )
      const tasks = await phone.client.tasks.query().get()
      const messages = await phone.client.messages.query().get()
      const conflicts = await phone.client.conflicts.query().get()
      const held = [
        ...tasks.map((row) => `tasks ${row.id} ${row.title} ${row.version} ${row.owner_id}`),
        ...messages.map(
          (row) => `messages ${row.id} ${row.content} ${row.version} ${row.sender_id} ${row.read_at === null}`,
        ),
        ...conflicts.map((row) => `conflicts ${row.id} ${row['message_id'] ?? row['row_id']}`),
      ]
      assert.deepEqual(
        held.sort(),
        wanted.map(({ kind, id, text }) => `${kind} ${id} ${text}`).sort(),
        `device ${place} and Postgres differ`,
      )
    }
  }

  async #checkDeeds(): Promise<void> {
    const ids = [...this.#ids.tasks, ...this.#ids.messages].map((id) => `'${id}'`).join() || 'NULL'
    const notes = await this.#psql.rows<Note>(
      `SELECT id, op, version, text, old_text, is_new_text, is_edit, is_read FROM public.history WHERE id IN (${ids}) ORDER BY number`,
    )
    const kept = await this.#psql.rows<Kept>(
      `SELECT client_version ->> 'op' AS op, coalesce(message_id::text, row_id) AS id,
         coalesce(client_version ->> 'content', client_version -> 'row' ->> 'title') AS text,
         coalesce(server_version ->> 'content', server_version ->> 'title') AS server_text, device_id,
         resolved_at IS NULL AS is_open, base_version AS base, (server_version ->> 'version')::bigint AS version
       FROM tenant_demo.message_conflicts WHERE message_id IN (${ids}) OR row_id = ANY (ARRAY[${ids}]::text[])`,
    )
    const deleted = await this.#psql.rows<{ id: string }>(
      `SELECT id FROM tenant_demo.messages WHERE id IN (${ids}) AND deleted_at IS NOT NULL
       UNION ALL SELECT id FROM tenant_demo.tasks WHERE id IN (${ids}) AND deleted_at IS NOT NULL`,
    )
    this.#tally.set('conflicts', (this.#tally.get('conflicts') ?? 0) + kept.length)
    const gone = new Set([...deleted.map(({ id }) => id), ...this.#removed.keys()])
    for (const [place, phone] of this.#phones.entries()) {
      assert.deepEqual(phone.violations, [], `device ${place}`)
      const list = await phone.client.outbox.list()
      // A change of a restored device that was based on one that lost its conflict has no base when it is numbered again.
      const isExpected = (code: string | null) =>
        REFUSALS.has(code ?? '') || (phone.wasRestored && code === 'VALIDATION_ERROR')
      const codes = list.filter(({ state, code }) => state === 'rejected' && !isExpected(code))
      assert.deepEqual(codes, [], `device ${place} was refused for what a client does not send`)
      const refused = new Set(list.filter(({ state }) => state === 'rejected').map(({ key }) => key))
      if (!phone.wasRestored) {
        const id = await phone.deviceId()
        const own = kept.filter((each) => each.device_id === id)
        // The server keeps a text with a deletion, too.
        const outline = (op: string, id: string, text: string | null) => `${op} ${id} ${op === 'delete' ? '' : text}`
        const conflicts = list.filter(({ state }) => state === 'conflict')
        const open = conflicts.map(({ op, id, row }) => outline(op, id, textOf(row)))
        const wanted = own.filter((each) => each.is_open).map(({ op, id, text }) => outline(op, id, text))
        assert.deepEqual(open.sort(), wanted.sort(), `device ${place}: its open conflicts, and those of the server`)
        for (const conflict of own) {
          assert.ok(this.#hasOtherSide(phone, conflict, notes), `device ${place}: no other change is in ${JSON.stringify(conflict)}`)
        }
      }
      for (const deed of phone.deeds) {
        this.#count('changes checked')
        const problem = this.#problemOf(phone, deed, refused.has(deed.key), notes, kept, gone)
        assert.ok(!problem, `device ${place}: ${JSON.stringify(deed)} ${problem}`)
      }
    }
  }

  /** Whether a conflict has an edit of another one between its base and what it met. */
  #hasOtherSide({ deeds }: Phone, { id, base, version }: Kept, notes: readonly Note[]): boolean {
    if (this.#removed.has(id) || version === null) return true
    const own = new Set(deeds.map(({ text }) => text))
    const between = notes.filter((note) => note.id === id && note.version > base && note.version <= version)
    return between.some((note) => note.is_edit && !(note.is_new_text && own.has(note.text)))
  }

  /** What is wrong with a change of a device; null: nothing. */
  #problemOf(
    phone: Phone,
    deed: Deed,
    isRefused: boolean,
    allNotes: readonly Note[],
    allKept: readonly Kept[],
    gone: ReadonlySet<string>,
  ): string | null {
    const { op, id, text, seen } = deed
    const notes = allNotes.filter((note) => note.id === id)
    const kept = allKept.filter((each) => each.id === id && each.op === op && (op === 'delete' || each.text === text))
    const written = notes.filter((note) => note.op !== 'DELETE' && note.is_new_text && text !== null && note.text === text)
    const removed = this.#removed.get(id) ?? 0
    // A copy from after a restore, and before the upload that numbers its items again, may do them again.
    const again = phone.wasRestored ? kept.length + removed + phone.restores - 1 : 0
    if (written.length > 1 + again) return `was done ${written.length} times`
    if (op === 'edit' && seen !== null && removed === 0 && !phone.isLive) {
      for (const { old_text: old } of phone.restores > 1 ? written.slice(0, 1) : written) {
        if (old !== seen && !kept.some((each) => each.server_text === old)) {
          return `overwrote ${old}, which the user had not seen`
        }
      }
    }
    if (deed.isForgotten || isRefused) return null
    const isThere =
      op === 'create'
        ? written.length > 0
        : op === 'read'
          ? notes.some((note) => note.is_read)
          : kept.length > 0 || (op === 'edit' ? written.length > 0 : gone.has(id))
    return isThere ? null : `was accepted and is not there: ${JSON.stringify(notes)}`
  }

  async #cleanUp(): Promise<void> {
    const users = this.#users.map(({ id }) => `'${id}'`).join()
    await this.#sql(
      `DELETE FROM tenant_demo.tasks WHERE owner_id IN (${users});
       DELETE FROM tenant_demo.messages WHERE sender_id IN (${users});
       DELETE FROM tenant_demo.message_conflicts WHERE user_id IN (${users});
       UPDATE tenant_demo.devices SET revoked_at = now() WHERE user_id IN (${users}) AND revoked_at IS NULL`,
    )
  }
}

function ownerOf(row: Row): unknown {
  const { owner_id: owner, sender_id: sender } = row as { owner_id?: string; sender_id?: string }
  return owner ?? sender
}

for (const [place, strategy] of (['manual', 'last_write_wins'] as const).entries()) {
  describe(`clients converge under ${strategy}`, () => {
    test('each has what Postgres has, and nothing that was accepted is missing', async () => {
      const stage = await Stage.start(strategy)
      const began = performance.now()
      const tally = new Map<string, number>()
      const count = Math.ceil(CASES / 2 / WORKERS)
      let deadline = Infinity
      let played = 0
      try {
        const workers = Array.from({ length: WORKERS }, async (_, worker) => {
          const psql = new Psql(stage.engine.env['DATABASE_URL']!)
          const users = await stage.users(psql, `model${worker}`)
          try {
            await fc.assert(
              fc.asyncProperty(story, async (ops) => {
                if (performance.now() > deadline) return
                played += 1
                try {
                  await new Story(stage, psql, users, tally, ops.length % 4 === 0).play(ops)
                } catch (error) {
                  if (deadline === Infinity) console.log(`${JSON.stringify(ops)} fails: ${String(error)}`)
                  deadline = Math.min(deadline, performance.now() + SHRINK_MS)
                  throw error
                }
              }),
              PATH
                ? { seed: SEED, path: PATH, numRuns: 1 }
                : { seed: SEED * 1000 + worker * 2 + place, numRuns: count },
            )
          } finally {
            psql.close()
          }
        })
        for (const { status, reason } of (await Promise.allSettled(workers)) as PromiseRejectedResult[])
          if (status === 'rejected') throw reason
      } finally {
        await stage.stop()
      }
      const seconds = (performance.now() - began) / 1000
      const steps = [...tally].map(([what, times]) => `${what} ${times}`).join(', ')
      console.log(`${strategy}: ${played} stories of the seed ${SEED} in ${seconds.toFixed(1)} s: ${steps}`)
    })
  })
}
