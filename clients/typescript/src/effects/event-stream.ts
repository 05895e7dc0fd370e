/** An event as the HTML standard defines it. */
export type StreamEvent = { readonly name: string; readonly id: string | null; readonly data: string }

/** The server's events are a few hundred bytes; presence of a whole tenant is the largest. */
const EVENT_CHARS_MAX = 1024 * 1024

/** Parses server-sent events in chunks of any size. A carriage return alone does not end a line. */
export class EventParser {
  #rest = ''
  #name = ''
  #id: string | null = null
  #data: string | null = null

  push(chunk: string): StreamEvent[] {
    const lines = (this.#rest + chunk).split('\n')
    this.#rest = lines.pop() ?? ''
    const events = lines.flatMap((line) => this.#line(line.replace(/\r$/, '')))
    if (this.#rest.length + (this.#data?.length ?? 0) > EVENT_CHARS_MAX) throw new Error('an event is too large')
    return events
  }

  #line(line: string): StreamEvent[] {
    if (line === '') {
      const event = { name: this.#name || 'message', id: this.#id, data: this.#data }
      this.#name = ''
      this.#id = this.#data = null
      // Without data there is none, as after a comment.
      return event.data === null ? [] : [event as StreamEvent]
    }
    const colon = line.indexOf(':')
    const field = colon < 0 ? line : line.slice(0, colon)
    const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '')
    if (field === 'event') this.#name = value
    else if (field === 'id') this.#id = value
    else if (field === 'data') this.#data = this.#data === null ? value : `${this.#data}\n${value}`
    return []
  }
}
