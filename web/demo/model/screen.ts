import { CHECKED_TABLES, Order, type Rows, type SeenRow } from './counters'
import type { Feed } from './feed'
import type { Pane } from './pane'
import { Value, type Readable } from './value'

/** Follows the rows that a pane shows: when they were painted, and whether their versions go back. */
export class Screen {
  readonly backwards: Value<number> = new Value<number>(0)
  readonly #pane: Pane
  readonly #order = new Order()

  constructor(pane: Pane, feed: Feed) {
    this.#pane = pane
    for (const table of CHECKED_TABLES) {
      const query: Readable<{ readonly rows: readonly SeenRow[]; readonly phase: string }> = pane[table]
      const read = () => {
        const { rows, phase } = query.getSnapshot()
        if (phase === 'loading') return
        const sightings = this.#order.observe(table, rows)
        this.backwards.set(this.#order.backwards)
        if (sightings.length === 0) return
        afterPaint((at) => {
          const connectedSince = pane.connectedSince.getSnapshot()
          for (const { id } of sightings) feed.painted({ pane: pane.name, table, rowId: id, at, connectedSince })
        })
      }
      query.subscribe(read)
      read()
    }
  }

  get rows(): Rows {
    const { tasks, messages, lists } = this.#pane
    return {
      tasks: tasks.getSnapshot().rows,
      messages: messages.getSnapshot().rows,
      lists: lists.getSnapshot().rows,
    }
  }
}

/** Calls back with the time, in ms since 1970, when the current state of the page has been painted. */
function afterPaint(run: (at: number) => void): void {
  requestAnimationFrame(() => {
    const { port1, port2 } = new MessageChannel()
    port1.onmessage = () => {
      port1.close()
      run(performance.timeOrigin + performance.now())
    }
    port2.postMessage(null)
  })
}
