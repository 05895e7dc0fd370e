import type { Clock } from '../clock.js'
import { isObject, text, type JsonObject } from '../json.js'
import type { Failure } from '../machine/state.js'
import { EventParser } from './event-stream.js'
import { classify, deviceHeaders, parse, type Credentials, type Http } from './http.js'

export type Transport = 'sse' | 'websocket'

export type LiveMode = 'auto' | 'websocket' | 'sse' | 'poll' | 'off'

export type LiveHandler = {
  opened(transport: Transport): void
  steady(): void
  event(name: string, id: string | null, data: JsonObject): void
  /** Once, unless it was closed by the client. */
  failed(failure: Failure): void
}

export type LiveOptions = {
  readonly http: Http
  readonly clock: Clock
  readonly credentials: Credentials
  readonly lastEventId: string | null
  readonly presence: boolean
  readonly WebSocket: typeof WebSocket | undefined
}

/** The server sends something every 15 s. */
const SILENCE_MS = 50_000

/** A connection that lives this long resets the delays. */
const STEADY_MS = 5000

/** A page does not see the pings of a WebSocket, so it sends its own. */
const PING_MS = 20_000

/** Ends of a WebSocket after which the same credentials are refused. */
const ENDED = 4401

/** Opens a stream of events; the result closes it. */
export function openLive(transport: Transport, options: LiveOptions, handler: LiveHandler): () => void {
  const control = new AbortController()
  let cancelSilence = () => {}
  let cancelSteady = () => {}
  const end = (failure: Failure | null) => {
    if (control.signal.aborted) return
    cancelSilence()
    cancelSteady()
    control.abort()
    if (failure) handler.failed(failure)
  }
  const received = () => {
    cancelSilence()
    if (control.signal.aborted) return
    cancelSilence = options.clock.schedule(() => end(lost(`no heartbeat for ${SILENCE_MS / 1000} s`)), SILENCE_MS)
  }
  const receive = (name: string, id: string | null, data: string | JsonObject) => {
    if (control.signal.aborted) return
    const read = typeof data === 'string' ? parse(data) : data
    if (name === 'hello') {
      handler.opened(transport)
      cancelSteady = options.clock.schedule(() => handler.steady(), STEADY_MS)
    }
    handler.event(name, id, isObject(read) ? (read as JsonObject) : {})
  }
  received()
  const open = transport === 'sse' ? openStream : openSocket
  open(options, control, received, receive).then(end, (error: unknown) => {
    end(lost(error instanceof Error ? error.message : 'the stream failed'))
  })
  return () => end(null)
}

type Receive = (name: string, id: string | null, data: string | JsonObject) => void

/** Resolves when the stream has ended, with the reason. */
async function openStream(
  { http, credentials, lastEventId, presence }: LiveOptions,
  control: AbortController,
  received: () => void,
  receive: Receive,
): Promise<Failure> {
  const path = `/sse/mobile/${encodeURIComponent(credentials.deviceId)}${queryOf(lastEventId, presence)}`
  const headers = { ...deviceHeaders(credentials), accept: 'text/event-stream' }
  const response = await http.open({ method: 'GET', path, headers }, control)
  // With these credentials there will be no stream again.
  if (response.status === 204) return ended('the stream of this device has ended: enroll it again')
  const reader = response.body?.getReader()
  if (!response.ok || !reader || !response.headers.get('content-type')?.startsWith('text/event-stream')) {
    reader?.releaseLock()
    const answer = await classify(response)
    return answer.ok ? lost('the response is not an event stream') : answer.failure
  }
  const parser = new EventParser()
  const decoder = new TextDecoder()
  for (;;) {
    const { done, value } = await reader.read()
    if (done) return lost('the server ended the stream')
    received()
    for (const { name, id, data } of parser.push(decoder.decode(value, { stream: true }))) receive(name, id, data)
  }
}

async function openSocket(
  options: LiveOptions,
  control: AbortController,
  received: () => void,
  receive: Receive,
): Promise<Failure> {
  const { http, clock, credentials, lastEventId, presence, WebSocket: Socket } = options
  if (!Socket) return lost('there is no WebSocket here')
  // A page cannot send headers with a WebSocket.
  const ticket = await http.send({
    method: 'POST',
    path: '/api/sse/ticket',
    headers: deviceHeaders(credentials),
    body: { stream: '/ws' },
    signal: control.signal,
  })
  if (!ticket.ok) return ticket.failure
  const value = isObject(ticket.body) ? text(ticket.body['ticket']) : null
  if (value === null) return lost('the response is not a ticket')
  if (control.signal.aborted) return lost('closed')
  return new Promise((resolve) => {
    let hasBegun = false
    const query = `${queryOf(lastEventId, presence)}&ticket=${encodeURIComponent(value)}`
    const socket = new Socket(`${http.base.replace(/^http/, 'ws')}/ws${query}`)
    let cancelPing = () => {}
    const ping = () => {
      cancelPing = clock.schedule(() => {
        if (socket.readyState === Socket.OPEN) socket.send('{"id":0,"type":"ping"}')
        ping()
      }, PING_MS)
    }
    ping()
    control.signal.addEventListener('abort', () => {
      cancelPing()
      socket.close()
    })
    socket.onmessage = ({ data }) => {
      received()
      const frame = parse(String(data))
      if (!isObject(frame)) return
      const name = text(frame['event'])
      if (name === null || name === 'pong' || name === 'result') return
      hasBegun = true
      receive(name, text(frame['id']), isObject(frame['data']) ? (frame['data'] as JsonObject) : {})
    }
    socket.onclose = ({ code }) => {
      cancelPing()
      if (code === ENDED) resolve(ended('the connection of this device has ended: enroll it again'))
      // The id may be invalid by now, and a page does not see the status.
      else if (!hasBegun && lastEventId !== null) resolve(invalidId())
      else resolve(lost(`the connection was closed with ${code}`))
    }
  })
}

function queryOf(lastEventId: string | null, presence: boolean): string {
  const query = new URLSearchParams({ presence: String(presence) })
  if (lastEventId !== null) query.set('last_event_id', lastEventId)
  return `?${query}`
}

function lost(message: string): Failure {
  return { kind: 'lost', message }
}

function ended(message: string): Failure {
  return { kind: 'ended', code: 'DEVICE_REVOKED', message }
}

function invalidId(): Failure {
  return {
    kind: 'refused',
    status: 400,
    code: 'INVALID_CURSOR',
    message: 'the last event id was refused',
    expected: null,
  }
}
