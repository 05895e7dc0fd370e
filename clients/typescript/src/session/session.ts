import type { Effect, Notice, RowChange, Step } from '../machine/effect.js'
import type { Event, RowId } from '../machine/event.js'
import { localTransition } from '../machine/local.js'
import { INITIAL, type State, type StoredResult, type StoredRow } from '../machine/state.js'
import { difference } from '../outbox/difference.js'
import type { Write } from '../outbox/item.js'
import { StoreError, type Entry, type Read, type Store } from '../store/store.js'
import { View } from '../tables/view.js'
import { Ledger, storedRows } from './ledger.js'

/** Attempts to store a step that other tabs overtake; each of them means that another tab has made progress. */
const ATTEMPTS_MAX = 50

/** What others must learn of a change of the storage. Rows: null for any. */
export type Changes = { readonly rows: readonly RowId[] | null; readonly hasResults: boolean }

export type SessionHooks = {
  /** Runs an effect of the leader. */
  run(effect: Exclude<Effect, { type: 'notify' }>): void
  notify(notice: Notice): void
  /** This client has changed the storage. */
  stored(changes: Changes): void
  /** State, outbox or rows have changed. */
  changed(): void
  /** Another client leads. */
  deposed(): void
  /** The storage failed while this client led; it must begin again after a delay. */
  failed(error: StoreError): void
  /** Changes of this client are in the outbox, except those that were refused. */
  appended(writes: readonly Write[]): void
  /** The keys of those that have no result yet. */
  waiting(): readonly string[]
  /** Null: the change left the outbox, and its result is gone. */
  settled(results: ReadonlyMap<string, StoredResult | null>): void
}

export type Transition = (state: State, event: Event) => Step

type Prepare = (state: State) => Event | Promise<Event>

/**
 * The machine with its storage. One step at a time: read what the event needs, compute, store, adopt, and only then run the
 * effects. A step that cannot be stored has no effect at all.
 */
export class Session {
  state: State = INITIAL
  /** The whole machine once the part that syncs is here. */
  transition: Transition = localTransition
  readonly view: View = new View()
  readonly store: Store
  readonly #ledger: Ledger
  readonly #hooks: SessionHooks
  #last: Promise<unknown> = Promise.resolve()
  #isClosed = false
  /** The ledger has read what the state does not have yet. */
  #isBehind = false
  storeError: StoreError | null = null

  constructor(store: Store, hooks: SessionHooks) {
    this.store = store
    this.#hooks = hooks
    this.#ledger = new Ledger(store)
  }

  get term(): number {
    return this.#ledger.term
  }

  close(): void {
    this.#isClosed = true
  }

  /** Reads the storage. */
  start(onLost: (reason: 'outdated' | 'closed') => void): Promise<StoreError | null> {
    return this.#enqueue(async () => {
      await this.store.open(onLost)
      await this.#reload(null)
    })
  }

  /** Begins a term as the leader. */
  lead(live: boolean, hasCredentials: boolean): Promise<StoreError | null> {
    return this.#enqueue(async () => {
      do await this.#reload(null)
      while (!(await this.#ledger.claim()))
      const [results = []] = await this.store.read([{ space: 'results' }])
      this.#ledger.adopt(results)
      await this.#step(() => ({ type: 'leads', leads: true, live, hasCredentials }))
    })
  }

  /** Ends the term. Whatever is in progress is stored first, or not at all. */
  resign(): Promise<StoreError | null> {
    return this.#enqueue(async () => this.#resign())
  }

  /** Handles an event that needs nothing from the storage. */
  dispatch(event: Event): Promise<StoreError | null> {
    return this.step(() => event)
  }

  /** Handles an event that is made from the state and the storage, and made again when other tabs overtake it. */
  step(prepare: Prepare): Promise<StoreError | null> {
    return this.#enqueue(() => this.#step(prepare))
  }

  write(writes: readonly Write[]): Promise<StoreError | null> {
    return this.#enqueue(async () => {
      await this.#step(async () => ({
        type: 'write',
        writes,
        stored: await this.rows(writes.map(({ table, id }) => [table, id])),
      }))
      this.#hooks.appended(writes)
    })
  }

  discard(key: string): Promise<StoreError | null> {
    return this.step(async () => ({ type: 'discard', key, result: await this.result(key) }))
  }

  async result(key: string): Promise<StoredResult | null> {
    const [[entry] = []] = await this.store.read([{ space: 'results', keys: [key] }])
    return (entry?.value as StoredResult | undefined) ?? null
  }

  /** Changes that were refused, or lost a conflict, until the user has decided; null: the storage failed. */
  async open(): Promise<StoredResult[] | null> {
    let open: StoredResult[] | null = null
    await this.#enqueue(async () => void (open = (await this.results()).filter(({ isOpen }) => isOpen)))
    return open
  }

  /** Another client has changed the storage. */
  reload(rows: readonly RowId[] | null): Promise<StoreError | null> {
    return this.#enqueue(() => this.#reload(rows))
  }

  /** Reads a table into the view. */
  load(table: string): Promise<StoreError | null> {
    return this.#enqueue(async () => {
      if (this.view.rows(table) || !this.view.isFollowed(table)) return
      // With the outbox of the same moment: a row must not be seen without its waiting changes.
      await this.#reload([], [table])
    })
  }

  wipe(keepOutbox: boolean): Promise<StoreError | null> {
    return this.#enqueue(async () => {
      this.#isBehind = true
      do await this.#ledger.read([])
      while (!(await this.#ledger.wipe(keepOutbox)))
      await this.#reload(null)
      this.#hooks.stored({ rows: null, hasResults: true })
    })
  }

  #resign(): void {
    if (this.state.leads)
      this.#adopt(this.transition(this.state, { type: 'leads', leads: false, live: false, hasCredentials: false }))
  }

  /** One after the other. Resolves to the failure of the storage, if there is one. */
  #enqueue(job: () => Promise<void>): Promise<StoreError | null> {
    const result = this.#last.then(async () => {
      if (this.#isClosed) return new StoreError('LOCAL_STORE_UNAVAILABLE', 'the client is closed')
      try {
        await job()
        this.storeError = null
        return null
      } catch (error) {
        this.storeError = error instanceof StoreError ? error : new StoreError('LOCAL_STORE_FAILED', String(error))
        if (this.state.leads) this.#hooks.failed(this.storeError)
        this.#hooks.changed()
        return this.storeError
      }
    })
    this.#last = result
    return result
  }

  async #step(prepare: Prepare): Promise<void> {
    // A step from an older state than the ledger's would undo what other tabs have stored.
    if (this.#isBehind) await this.#reload([])
    for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt += 1) {
      const step = this.transition(this.state, await prepare(this.state))
      if (await this.#ledger.store(step, this.state.leads)) {
        this.#adopt(step)
        return
      }
      await this.#reload([])
    }
    throw new StoreError('LOCAL_STORE_FAILED', `other tabs changed the storage ${ATTEMPTS_MAX} times during one step`)
  }

  #adopt(step: Step): void {
    const before = this.state
    this.state = step.state
    const { outbox, device } = step.state
    this.view.apply(step.rows, outbox, device.userId, step.clears)
    const isOutbox = outbox !== before.outbox
    const hasResults = step.clears || step.results.size > 0
    if (hasResults || step.rows.length > 0 || isOutbox || device !== before.device) {
      this.#hooks.stored({ rows: step.clears ? null : step.rows.map(([table, id]) => [table, id]), hasResults })
    }
    if (isOutbox) this.#settle(step.results, difference(before.outbox, outbox))
    for (const effect of step.effects) {
      if (effect.type === 'notify') this.#hooks.notify(effect.notice)
      else this.#hooks.run(effect)
    }
    this.#hooks.changed()
  }

  /** Reads what other clients have changed, and lets the machine adapt. Rows: null for those of all followed tables. */
  async #reload(
    rows: readonly RowId[] | null,
    tables: readonly string[] = rows ? [] : this.view.followed(),
  ): Promise<void> {
    for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt += 1) {
      const parts = await this.#refresh(
        rows ?? [],
        tables.map((table) => ({ space: 'rows', table })),
      )
      for (const [place, table] of tables.entries()) this.view.load(table, parts[place] ?? [])
      const { device, outbox } = this.#ledger
      const step = this.transition(this.state, { type: 'loaded', device, outbox })
      if (await this.#ledger.store(step, this.state.leads)) {
        // What was read is no change of this client.
        this.state = { ...this.state, device, outbox }
        this.#isBehind = false
        return this.#adopt(step)
      }
    }
    throw new StoreError('LOCAL_STORE_FAILED', `other tabs changed the storage ${ATTEMPTS_MAX} times during one step`)
  }

  /** Reads device, outbox and rows as of one moment into the view; returns the other parts. */
  async #refresh(rows: readonly RowId[], more: readonly Read[]): Promise<Entry[][]> {
    const wanted = new Map<string, RowId>()
    for (const row of [...rows, ...this.view.rowsOfItems()]) {
      if (this.view.rows(row[0])) wanted.set(row.join('\0'), row)
    }
    const keys = [...wanted.values()]
    const { term } = this.#ledger
    this.#isBehind = true
    const [changed = [], ...parts] = await this.#ledger.read([{ space: 'rows', keys }, ...more])
    if (this.state.leads && this.#ledger.term !== term) {
      this.#resign()
      this.#hooks.deposed()
    }
    const found = storedRows(changed)
    const changes = keys.map(([table, id]): RowChange => [table, id, found.get(`${table}\0${id}`) ?? null])
    this.view.apply(changes, this.#ledger.outbox, this.#ledger.device.userId)
    await this.#findResults()
    return parts
  }

  /** Reports the results of changes that this step has taken out of the outbox. */
  #settle(results: Step['results'], [removed, added]: ReturnType<typeof difference>): void {
    const still = new Set(added.map(({ key }) => key))
    const gone = removed.filter(({ key }) => !still.has(key))
    if (gone.length > 0) this.#hooks.settled(new Map(gone.map(({ key }) => [key, results.get(key) ?? null])))
  }

  /** Reports the results of changes that another client has taken out of the outbox. */
  async #findResults(): Promise<void> {
    const waiting = this.#hooks.waiting()
    if (waiting.length === 0) return
    const still = new Set(this.#ledger.outbox.map(({ key }) => key))
    const gone = waiting.filter((key) => !still.has(key))
    if (gone.length === 0) return
    const [results = []] = await this.store.read([{ space: 'results', keys: gone }])
    const found = new Map(results.map(({ key, value }) => [key, value as StoredResult]))
    this.#hooks.settled(new Map(gone.map((key) => [key, found.get(key) ?? null])))
  }

  /** For a step: the results that are kept. */
  async results(): Promise<StoredResult[]> {
    const [results = []] = await this.store.read([{ space: 'results' }])
    return results.map(({ value }) => value as StoredResult)
  }

  /** For a step: rows as they are stored. */
  async rows(ids: readonly RowId[]): Promise<Map<string, StoredRow>> {
    if (ids.length === 0) return new Map()
    const [entries = []] = await this.store.read([{ space: 'rows', keys: ids }])
    return storedRows(entries)
  }
}
