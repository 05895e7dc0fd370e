import { clock } from '../clock.js'
import type { JsonObject } from '../json.js'
import type { ClientBase, ClientEvents } from '../types.js'
import { Faults, type Environment } from './faults.js'
import { changed, Log } from './log.js'
import { mountPanel } from './panel.js'

export type { Environment } from './faults.js'

export type Devtools = {
  /** For `createClient`: through it go the faults of the panel and the requests in its log. */
  readonly environment: Environment
  /** Adds the panel to a page; the result removes it. */
  mount(client: ClientBase, into?: HTMLElement): () => void
}

const EVENTS: readonly (keyof ClientEvents)[] = [
  'conflict',
  'rejected',
  'reset',
  'joined',
  'left',
  'signedOut',
  'outdated',
  'deviceAdded',
  'message',
]

/**
 * A panel for development: the rows of each table, the outbox, a log, and faults that a client must survive. It is no part
 * of the client, and has no place in what users load.
 */
export function devtools(platform: Environment = {}): Devtools {
  const log = new Log(clock)
  const faults = new Faults(platform, (request) => log.add('request', request))
  return {
    environment: faults.environment,
    mount: (client, into = document.body) => {
      let before: JsonObject = {}
      const record = () => {
        const after = client.status.getSnapshot() as unknown as JsonObject
        const data = changed(before, after)
        before = after
        if (Object.keys(data).length > 0) log.add('status', data)
      }
      record()
      const stops = [
        client.status.subscribe(record),
        ...EVENTS.map((name) =>
          client.on(name, (event) => log.add('event', { name, ...(JSON.parse(JSON.stringify(event)) as JsonObject) })),
        ),
        mountPanel({ client, faults, log, into }),
      ]
      return () => {
        for (const stop of stops) stop()
      }
    },
  }
}
