import { demo, Refusal, type Setup, type SqlResult } from './api'
import { newTag, tagsOf, type Ledger } from './tag'
import { Value } from './value'

export type Outcome =
  | { readonly state: 'none' }
  | { readonly state: 'running' }
  | { readonly state: 'done'; readonly result: SqlResult }
  | { readonly state: 'failed'; readonly code: string; readonly message: string }

export type Example = { readonly name: string; readonly statement: () => string }

/** The statement in the box, and what Postgres answered. */
export class Sql {
  readonly text: Value<string>
  readonly outcome: Value<Outcome> = new Value<Outcome>({ state: 'none' })
  readonly examples: readonly Example[]
  readonly #ledger: Ledger

  constructor({ list, users }: Setup, ledger: Ledger) {
    this.#ledger = ledger
    this.examples = [
      {
        name: 'INSERT a task',
        statement: () =>
          'INSERT INTO tasks (list_id, title)\n' +
          `VALUES ('${list.id}', '${pick(GOODS)} #${newTag()}')\n` +
          'RETURNING id, title, version',
      },
      {
        name: 'INSERT a message',
        statement: () =>
          'INSERT INTO messages (sender_id, recipient_id, content)\n' +
          `VALUES ('${users.bob}', '${users.joe}', 'Written by psql #${newTag()}')`,
      },
      { name: 'UPDATE', statement: () => 'UPDATE tasks SET done = NOT done\nRETURNING title, done, version' },
      { name: 'DELETE', statement: () => 'DELETE FROM tasks WHERE done\nRETURNING title' },
      {
        name: 'SELECT',
        statement: () => 'SELECT title, done, version, updated_at FROM tasks\nORDER BY updated_at DESC LIMIT 10',
      },
    ]
    this.text = new Value(this.examples[0]?.statement() ?? '')
  }

  async run(): Promise<SqlResult | null> {
    const statement = this.#ledger.refresh(this.text.getSnapshot())
    this.text.set(statement)
    this.outcome.set({ state: 'running' })
    try {
      const result = await demo.sql(statement)
      // A statement may write one tag into many rows on purpose.
      if (/ 1$/.test(result.command)) for (const tag of tagsOf(statement)) this.#ledger.add(tag)
      this.outcome.set({ state: 'done', result })
      return result
    } catch (error) {
      const code = error instanceof Refusal ? error.code : 'no answer'
      this.outcome.set({ state: 'failed', code, message: error instanceof Error ? error.message : String(error) })
      return null
    }
  }
}

const GOODS = ['Honey', 'Olives', 'Rye bread', 'Apricots', 'Basil', 'Lentils', 'Pears', 'Mustard', 'Figs', 'Capers']

function pick(values: readonly string[]): string {
  return values[Math.floor(Math.random() * values.length)] as string
}
