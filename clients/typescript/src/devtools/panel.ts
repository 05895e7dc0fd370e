import type { Json, JsonObject } from '../json.js'
import type { ClientBase, Outcome, OutboxEntry } from '../types.js'
import type { Query, QueryOptions } from '../tables/query.js'
import { element, replace } from './dom.js'
import type { Fault, Faults } from './faults.js'
import type { Log } from './log.js'
import { STYLE } from './style.js'

export type PanelOptions = {
  readonly client: ClientBase
  readonly faults: Faults
  readonly log: Log
  readonly into: HTMLElement
}

/** One of the pages of the panel. It works only while it is shown. */
type Page = {
  readonly name: string
  readonly body: HTMLElement
  /** The result ends it. */
  show(): () => void
}

const ROWS_MAX = 200

const CELL_CHARS_MAX = 300

/** Adds the panel, closed; the result removes it. */
export function mountPanel({ client, faults, log, into }: PanelOptions): () => void {
  const host = element('div', { attributes: { 'data-posduif-devtools': '' } })
  const root = host.attachShadow({ mode: 'open' })
  const sheet = new CSSStyleSheet()
  sheet.replaceSync(STYLE)
  root.adoptedStyleSheets = [sheet]

  const said = element('p', { className: 'note', attributes: { role: 'status' } })
  const say = (text: string) => (said.textContent = text)
  const summary = element('p', { className: 'summary' })
  const pages = [tablesPage(client), outboxPage(client, say), logPage(log, say), faultsPage(client, faults, say)]
  const tabs = tabList(pages)
  const close = element('button', { type: 'button', textContent: 'Close' })
  const panel = element(
    'section',
    { className: 'panel', hidden: true, attributes: { 'aria-label': 'Posduif devtools' } },
    element('header', {}, element('h2', { textContent: 'Posduif' }), summary, close),
    element('div', { className: 'bar' }, tabs.list),
    ...pages.map(({ body }) => body),
    element('div', { className: 'bar' }, said),
  )
  const toggle = element('button', {
    type: 'button',
    className: 'toggle',
    textContent: 'Posduif',
    attributes: { 'aria-expanded': 'false', 'aria-label': 'Posduif devtools' },
  })

  let stopSummary = () => {}
  const open = (isOpen: boolean) => {
    panel.hidden = !isOpen
    toggle.hidden = isOpen
    toggle.setAttribute('aria-expanded', String(isOpen))
    stopSummary()
    if (isOpen) {
      const show = () => (summary.textContent = summaryOf(client))
      show()
      stopSummary = client.status.subscribe(show)
      tabs.start()
      tabs.focus()
    } else {
      tabs.stop()
      toggle.focus()
    }
  }
  toggle.onclick = () => open(true)
  close.onclick = () => open(false)
  // A handler that returns false would take every other key from the controls.
  panel.onkeydown = ({ key }) => {
    if (key === 'Escape') open(false)
  }
  root.append(toggle, panel)
  into.append(host)
  return () => {
    stopSummary()
    tabs.stop()
    host.remove()
  }
}

function summaryOf({ status }: ClientBase): string {
  const { state, live, online, leader, upToDate, outbox, error } = status.getSnapshot()
  const parts = [
    state,
    `live: ${live}`,
    online ? 'online' : 'offline',
    leader ? 'this tab leads' : 'another tab leads',
    upToDate ? 'up to date' : 'not up to date',
    `${outbox.waiting} waiting`,
    ...(error ? [`${error.at}: ${error.code}: ${error.message}`] : []),
  ]
  return parts.join(' · ')
}

/** As the pattern "tabs" of the ARIA practices: one stop for the Tab key, arrows choose. */
function tabList(pages: readonly Page[]): { list: HTMLElement; start(): void; stop(): void; focus(): void } {
  let stop = () => {}
  let current = 0
  const buttons = pages.map(({ name, body }, place) => {
    body.id = `panel-${place}`
    body.setAttribute('role', 'tabpanel')
    body.setAttribute('aria-labelledby', `tab-${place}`)
    return element('button', {
      type: 'button',
      id: `tab-${place}`,
      textContent: name,
      onclick: () => choose(place),
      attributes: { role: 'tab', 'aria-controls': `panel-${place}` },
    })
  })
  const choose = (place: number) => {
    current = place
    stop()
    for (const [at, button] of buttons.entries()) {
      button.setAttribute('aria-selected', String(at === place))
      button.tabIndex = at === place ? 0 : -1
      pages[at]!.body.hidden = at !== place
    }
    stop = pages[place]!.show()
  }
  const list = element('div', { attributes: { role: 'tablist', 'aria-label': 'Pages' } }, ...buttons)
  list.onkeydown = (event) => {
    const last = buttons.length - 1
    const next = { ArrowRight: current + 1, ArrowLeft: current - 1, Home: 0, End: last }[event.key]
    if (next === undefined) return
    event.preventDefault()
    choose(next < 0 ? last : next > last ? 0 : next)
    buttons[current]!.focus()
  }
  return {
    list,
    start: () => choose(current),
    stop: () => {
      stop()
      stop = () => {}
    },
    focus: () => buttons[current]!.focus(),
  }
}

// ------------------------------------------------------------------------------------------------------------ tables

type Queries = { query(options?: QueryOptions<JsonObject>): Query<JsonObject> }

/** What the client has under the names of its tables. */
function tablesOf(client: ClientBase): Map<string, Queries> {
  const tables = new Map<string, Queries>()
  for (const [name, value] of Object.entries(client)) {
    if (typeof value === 'object' && value !== null && 'query' in value) tables.set(name, value as unknown as Queries)
  }
  return tables
}

function tablesPage(client: ClientBase): Page {
  const tables = tablesOf(client)
  const choice = element('select', {}, ...[...tables.keys()].map((name) => element('option', { textContent: name })))
  const filter = element('input', { type: 'search', autocomplete: 'off' })
  const count = element('p', { className: 'note' })
  const scroll = element('div', { className: 'scroll', tabIndex: 0, attributes: { role: 'region' } })
  const body = element(
    'div',
    { hidden: true },
    element('div', { className: 'bar' }, labelled('Table', choice), labelled('Filter', filter), count),
    scroll,
  )
  let query: Query<JsonObject> | null = null
  let stop = () => {}
  const draw = async () => {
    if (!query) return
    const waiting = new Set((await client.outbox.list()).map(({ id }) => id))
    const { rows, phase, error } = query.getSnapshot()
    const wanted = filter.value.toLowerCase()
    const found = rows.filter((row) => wanted === '' || JSON.stringify(row).toLowerCase().includes(wanted))
    count.textContent = error
      ? `${error.code}: ${error.message}`
      : `${found.length} of ${rows.length} rows, ${phase}${found.length > ROWS_MAX ? `; the first ${ROWS_MAX}` : ''}`
    replace(scroll, rowsTable(found.slice(0, ROWS_MAX), waiting))
  }
  const start = () => {
    stop()
    scroll.setAttribute('aria-label', `Rows of ${choice.value}`)
    query = tables.get(choice.value)?.query() ?? null
    const stops = [query?.subscribe(() => void draw()), client.status.subscribe(() => void draw())]
    stop = () => stops.forEach((each) => each?.())
    void draw()
  }
  choice.onchange = start
  filter.oninput = () => void draw()
  return {
    name: 'Tables',
    body,
    show: () => {
      start()
      return () => stop()
    },
  }
}

function rowsTable(rows: readonly JsonObject[], waiting: ReadonlySet<string>): HTMLElement {
  const columns = [...new Set(['id', ...rows.flatMap((row) => Object.keys(row))])]
  return table(
    ['change', ...columns],
    rows.map((row) => [
      waiting.has(String(row['id'])) ? 'waiting' : '',
      ...columns.map((column) => cell(row[column])),
    ]),
  )
}

// ------------------------------------------------------------------------------------------------------------ outbox

function outboxPage(client: ClientBase, say: (text: string) => void): Page {
  const scroll = element('div', {
    className: 'scroll',
    tabIndex: 0,
    attributes: { role: 'region', 'aria-label': 'Changes in the outbox' },
  })
  const decide = async (entry: OutboxEntry, choice: 'Retry' | 'Discard') => {
    const outcome: Outcome =
      choice === 'Discard'
        ? await client.outbox.discard(entry.key)
        : ((await (await client.outbox.retry(entry.key))?.local) ?? {
            ok: false,
            code: 'LOCAL_NOT_FOUND',
            message: 'it is decided already',
          })
    say(outcome.ok ? `${choice}: ${nameOf(entry)}: done` : `${choice}: ${outcome.code}: ${outcome.message}`)
    await draw()
  }
  const draw = async () => {
    const entries = await client.outbox.list()
    const rows = entries.map((entry) => {
      const { state, at, table: name, op, id, row, code, message, server } = entry
      const button = (choice: 'Retry' | 'Discard') =>
        element('button', {
          type: 'button',
          textContent: choice,
          onclick: () => void decide(entry, choice),
          attributes: { 'aria-label': `${choice} ${nameOf(entry)}`, 'data-focus': `${choice} ${entry.key}` },
        })
      const isOpen = state === 'rejected' || state === 'conflict'
      const buttons = element(
        'span',
        {},
        isOpen ? button('Retry') : null,
        state === 'sent' ? null : button('Discard'),
      )
      return [state, at.slice(0, 19).replace('T', ' '), name, op, id, cell(row), code ? `${code}: ${message}` : '', cell(server), buttons]
    })
    const head = ['state', 'at', 'table', 'op', 'id', 'row', 'reason', "server's row", 'decide']
    replace(scroll, entries.length > 0 ? table(head, rows) : element('p', { textContent: 'The outbox is empty.' }))
  }
  return {
    name: 'Outbox',
    body: element('div', { hidden: true }, scroll),
    show: () => {
      void draw()
      return client.status.subscribe(() => void draw())
    },
  }
}

function nameOf({ op, table: name, id }: OutboxEntry): string {
  return `${op} of ${name} ${id}`
}

// --------------------------------------------------------------------------------------------------------------- log

function logPage(log: Log, say: (text: string) => void): Page {
  const lines = element('pre')
  const scroll = element(
    'div',
    { className: 'scroll', tabIndex: 0, attributes: { role: 'region', 'aria-label': 'Log, newest first' } },
    lines,
  )
  const copy = element('button', { type: 'button', textContent: 'Copy' })
  const clear = element('button', { type: 'button', textContent: 'Clear' })
  copy.onclick = () => {
    const { length } = log.lines
    const done = () => say(`Copied ${length} lines.`)
    const failed = () => say('The browser does not let this page copy: select the lines instead.')
    if (navigator.clipboard) navigator.clipboard.writeText(log.text()).then(done, failed)
    else failed()
  }
  clear.onclick = () => {
    log.clear()
    say('The log is empty.')
  }
  const draw = () => {
    const texts = log.lines.map(({ at, what, data }) => `${at.slice(11, 23)} ${what.padEnd(8)} ${JSON.stringify(data)}`)
    lines.textContent = texts.reverse().join('\n')
  }
  return {
    name: 'Log',
    body: element('div', { hidden: true }, element('div', { className: 'bar' }, copy, clear), scroll),
    show: () => {
      draw()
      return log.subscribe(draw)
    },
  }
}

// ------------------------------------------------------------------------------------------------------------ faults

const SWITCHES: readonly (readonly [Fault, string])[] = [
  ['offline', 'Offline: no request gets an answer, streams break'],
  ['lost answer', 'Lose the answer of the next upload'],
  ['expired token', 'Refuse the token of the next request'],
  ['reset', 'Refuse the next cursor, so that a snapshot replaces all rows'],
]

function faultsPage(client: ClientBase, faults: Faults, say: (text: string) => void): Page {
  const boxes = SWITCHES.map(([fault, text]) => {
    const box = element('input', { type: 'checkbox' })
    box.onchange = () => {
      faults.set(fault, box.checked)
      // At the end of an outage, as the browser's own event; otherwise so that there is a next request now.
      if (box.checked !== (fault === 'offline')) void client.sync()
    }
    return { fault, box, label: element('label', {}, box, text) }
  })
  const end = element('button', { type: 'button', textContent: 'End the leader' })
  end.onclick = () => {
    const isEnded = faults.endLeader()
    say(isEnded ? 'The lead is free: the next tab takes it.' : 'No lock decides who leads: this client is alone.')
  }
  const draw = () => {
    for (const { fault, box } of boxes) box.checked = faults.has(fault)
  }
  const note = 'In this tab. Only the tab that leads sends requests.'
  return {
    name: 'Faults',
    body: element(
      'div',
      { hidden: true },
      element('fieldset', {}, element('legend', { textContent: note }), ...boxes.map(({ label }) => label), end),
    ),
    show: () => {
      draw()
      return faults.subscribe(draw)
    },
  }
}

// ------------------------------------------------------------------------------------------------------------- parts

function labelled(text: string, control: HTMLElement): HTMLElement {
  return element('label', {}, text, control)
}

function table(head: readonly string[], rows: readonly (readonly (string | HTMLElement)[])[]): HTMLElement {
  const cells = (name: 'th' | 'td', values: readonly (string | HTMLElement)[]) =>
    values.map((value) => element(name, {}, value))
  return element(
    'table',
    {},
    element('thead', {}, element('tr', {}, ...cells('th', head))),
    element('tbody', {}, ...rows.map((values) => element('tr', {}, ...cells('td', values)))),
  )
}

function cell(value: Json | undefined): string {
  if (value === undefined) return ''
  const shown = typeof value === 'string' ? value : JSON.stringify(value)
  return shown.length > CELL_CHARS_MAX ? `${shown.slice(0, CELL_CHARS_MAX)}…` : shown
}
