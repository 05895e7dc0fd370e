import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Clock } from '../../src/clock.js'
import { Leader } from '../../src/tabs/leader.js'

type Waiter = { grant: () => void; fail: (error: Error) => void }

/** One lock, as the browser has it. */
class Locks {
  #held: { fail: (error: Error) => void } | null = null
  #queue: Waiter[] = []

  readonly request = (
    _name: string,
    options: LockOptions,
    callback: () => Promise<void> | undefined,
  ): Promise<unknown> =>
    new Promise((resolve, reject) => {
      const waiter: Waiter = {
        fail: reject,
        grant: () => {
          const holder = { fail: reject }
          this.#held = holder
          void Promise.resolve(callback()).then(() => {
            resolve(undefined)
            if (this.#held === holder) this.#next()
          })
        },
      }
      if (options.steal) {
        this.#held?.fail(new Error('AbortError'))
        waiter.grant()
      } else if (this.#held) {
        this.#queue.push(waiter)
        options.signal?.addEventListener('abort', () => {
          this.#queue = this.#queue.filter((each) => each !== waiter)
          reject(new Error('AbortError'))
        })
      } else waiter.grant()
    })

  #next(): void {
    this.#held = null
    this.#queue.shift()?.grant()
  }
}

class Time {
  now = 0
  #timers: { at: number; run: () => void }[] = []

  readonly clock: Clock = {
    now: () => this.now,
    schedule: (run, ms) => {
      const timer = { at: this.now + ms, run }
      this.#timers.push(timer)
      return () => void (this.#timers = this.#timers.filter((each) => each !== timer))
    },
    random: () => 0.5,
    uuid: () => '',
  }

  async advance(ms: number): Promise<void> {
    const end = this.now + ms
    for (;;) {
      await settled()
      const next = this.#timers.filter(({ at }) => at <= end).sort((one, other) => one.at - other.at)[0]
      if (!next) break
      this.#timers = this.#timers.filter((each) => each !== next)
      this.now = next.at
      next.run()
    }
    this.now = end
    await settled()
  }
}

/** All promises that can settle have. */
function settled(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}

function tab(
  locks: Locks,
  time: Time,
  events: string[],
  name: string,
  options: { isVisible?: boolean; ping?: () => void } = {},
): Leader {
  return new Leader({
    name: 'app',
    locks: locks as unknown as LockManager,
    clock: time.clock,
    isVisible: () => options.isVisible ?? true,
    ping: options.ping ?? (() => {}),
    beat: () => {},
    onLead: () => events.push(`${name} leads`),
    onLose: () => events.push(`${name} lost`),
  })
}

test('one tab leads, and the next one when it stops', async () => {
  const [locks, time, events] = [new Locks(), new Time(), [] as string[]]
  const [one, other] = [tab(locks, time, events, 'one'), tab(locks, time, events, 'other')]
  one.start()
  other.start()
  await settled()
  assert.deepEqual(events, ['one leads'])
  one.stop()
  await settled()
  assert.deepEqual(events, ['one leads', 'one lost', 'other leads'])
  one.start()
  await settled()
  assert.equal(one.leads, false)
})

test('leader that answers pings keeps the lead', async () => {
  const [locks, time, events] = [new Locks(), new Time(), [] as string[]]
  const one = tab(locks, time, events, 'one')
  const other = tab(locks, time, events, 'other', { ping: () => other.leaderAnswered() })
  one.start()
  other.start()
  await time.advance(300_000)
  assert.deepEqual(events, ['one leads'])
})

test('leader that is silent is replaced, and loses the lead', async () => {
  const [locks, time, events] = [new Locks(), new Time(), [] as string[]]
  const [one, other] = [tab(locks, time, events, 'one'), tab(locks, time, events, 'other')]
  one.start()
  other.start()
  await time.advance(10_000)
  assert.deepEqual(events, ['one leads', 'other leads', 'one lost'])
  assert.equal(one.leads, false)
})

test('hidden tab does not take the lead from a silent leader', async () => {
  const [locks, time, events] = [new Locks(), new Time(), [] as string[]]
  const [one, other] = [tab(locks, time, events, 'one'), tab(locks, time, events, 'other', { isVisible: false })]
  one.start()
  other.start()
  await time.advance(300_000)
  assert.deepEqual(events, ['one leads'])
})

test('two tabs that do not hear each other change the lead less and less often', async () => {
  const [locks, time, events] = [new Locks(), new Time(), [] as string[]]
  const [one, other] = [tab(locks, time, events, 'one'), tab(locks, time, events, 'other')]
  one.start()
  other.start()
  const leads = () => events.filter((event) => event.endsWith('leads')).length
  await time.advance(600_000)
  const early = leads()
  await time.advance(3_000_000)
  const late = leads() - early
  assert.ok(early <= 10 && late <= 10, `${early} in the first 10 minutes, ${late} in the next 50`)
})

test('without locks a client leads at once', () => {
  const events: string[] = []
  const leader = new Leader({
    name: null,
    locks: undefined,
    clock: new Time().clock,
    isVisible: () => true,
    ping: () => {},
    beat: () => {},
    onLead: () => events.push('leads'),
    onLose: () => events.push('lost'),
  })
  leader.start()
  leader.stop()
  assert.deepEqual(events, ['leads', 'lost'])
})
