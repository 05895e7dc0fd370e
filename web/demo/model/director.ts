import type { Demo } from './demo'
import type { StepId } from './story'
import { tagsOf } from './tag'
import { until } from './value'

const WAIT_MS = 15_000

/** Performs the steps of the story with the controls that a visitor has. */
export class Director {
  readonly #demo: Demo

  constructor(demo: Demo) {
    this.#demo = demo
  }

  async perform(step: StepId): Promise<void> {
    const { joe, revoke } = this.#demo
    if (joe.access.getSnapshot() === 'revoked') {
      await joe.enter()
      await this.#isReady()
    }
    switch (step) {
      case 'sql':
        return this.#sql()
      case 'offline':
        return this.#offline()
      case 'conflict':
        return this.#conflict()
      case 'lost':
        return this.#lost()
      case 'kill':
        return this.#kill()
      case 'revoke':
        return revoke()
    }
  }

  async #sql(): Promise<void> {
    const { sql, setup, notice } = this.#demo
    if (!setup.features.sql) return notice.set('This Postgres is yours: insert a row into tenant_demo.tasks with psql.')
    const text = sql.text.getSnapshot()
    // A statement of the visitor stays.
    const isInsert = /^\s*insert\s+into\s+(tasks|messages)\b/i.test(text) && tagsOf(text).length > 0
    if (!isInsert) sql.text.set(sql.examples[0]?.statement() ?? '')
    await this.#isReady()
    await sql.run()
  }

  async #offline(): Promise<void> {
    const { joe } = this.#demo
    await this.#isReady()
    const [first, second] = await this.#openTasks(2)
    if (first === undefined || second === undefined) return
    joe.setOffline(true)
    await joe.rename(first, pick(['Oat milk', 'Goat cheese', 'Spelt bread', 'Red lentils'])).local
    await joe.tick(second, true).local
    await joe.send('In the tunnel, back in 5 min').local
  }

  /** Bob changes what waits on the phone, then the phone returns. */
  async #conflict(): Promise<void> {
    const { joe, bob } = this.#demo
    const rename = joe.outbox
      .getSnapshot()
      .find(({ table, op, state, row }) => table === 'tasks' && op === 'edit' && state === 'waiting' && 'title' in row)
    let id = rename?.id
    if (id === undefined) {
      await this.#isReady()
      ;[id] = await this.#openTasks(1)
      if (id === undefined) return
      joe.setOffline(true)
      await joe.rename(id, 'Oat milk').local
    }
    const { status } = await bob.rename(id, pick(['Almond milk', 'Feta', 'Rye crisps', 'Chickpeas'])).server
    if (status === 'applied') joe.setOffline(false)
  }

  async #lost(): Promise<void> {
    const { joe } = this.#demo
    // What the phone could not send before has made its delays longer.
    await this.#isReady()
    joe.setOffline(true)
    await Promise.all(['Flour', 'Yeast', 'Butter'].map((title) => joe.add(title).local))
    joe.faults.setLoseNext(true)
    joe.setOffline(false)
  }

  /** Both write while the engine is dead. */
  async #kill(): Promise<void> {
    const { joe, bob, feed, kill } = this.#demo
    if (joe.faults.state.getSnapshot().offline) joe.setOffline(false)
    await kill()
    await until([feed.engine], () => feed.engine.getSnapshot().state === 'down', 1000)
    joe.add('Written without an engine')
    bob.send('Still here?')
  }

  async #isReady(): Promise<void> {
    const { joe, bob } = this.#demo
    if (joe.faults.state.getSnapshot().offline) joe.setOffline(false)
    const isReady = () => [joe, bob].every(({ status }) => status.upToDate)
    await until([joe.client.status, bob.client.status], isReady, WAIT_MS)
  }

  /** Ids of the newest open tasks that both devices have; Bob adds what is missing. */
  async #openTasks(least: number): Promise<string[]> {
    const { joe, bob, setup } = this.#demo
    const open = () =>
      joe.tasks
        .getSnapshot()
        .rows.filter(({ done, list_id: list, version }) => !done && list === setup.list.id && version !== undefined)
        .sort((one, other) => ((one.created_at ?? '') < (other.created_at ?? '') ? 1 : -1))
        .map(({ id }) => id)
    for (let missing = least - open().length; missing > 0; missing -= 1) bob.add(pick(['Milk', 'Cheese', 'Bread']))
    await until([joe.tasks], () => open().length >= least, WAIT_MS)
    return open()
  }
}

function pick(values: readonly string[]): string {
  return values[Math.floor(Math.random() * values.length)] as string
}
