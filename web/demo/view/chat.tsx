import { useEffect, useRef } from 'preact/hooks'
import type { Setup } from '../model/api'
import type { Pane } from '../model/pane'
import { splitTag } from '../model/tag'
import { useSnapshot } from './hooks'
import { Compose, useWaiting, Waits } from './tasks'

const SHOWN_MAX = 50

export function Chat({ pane, users }: { readonly pane: Pane; readonly users: Setup['users'] }) {
  const { rows } = useSnapshot(pane.messages)
  const waiting = new Set(useWaiting(pane, 'messages'))
  const list = useRef<HTMLUListElement>(null)
  const pair = new Set([users.joe, users.bob])
  const messages = rows
    .filter(({ sender_id: from, recipient_id: to }) => pair.has(from) && pair.has(to ?? ''))
    .slice(-SHOWN_MAX)
  const [me, other] = pane.name === 'joe' ? ['Joe', 'Bob'] : ['Bob', 'Joe']
  useEffect(() => {
    if (list.current) list.current.scrollTop = list.current.scrollHeight
  }, [rows])
  return (
    <section class="chat" aria-label={`Messages of ${me} with ${other}`}>
      <h3>{other}</h3>
      <ul ref={list} tabIndex={0} aria-label="Messages">
        {messages.map(({ id, sender_id: from, content, status }) => {
          const { text, tag } = splitTag(content)
          const isMine = from === users[pane.name]
          return (
            <li key={id} class={isMine ? 'bubble mine' : 'bubble'} data-id={id}>
              <span class="visually-hidden">{isMine ? me : other}: </span>
              {text}
              <span class="row-note">
                {tag !== null && <span class="tag">#{tag}</span>}
                {isMine && (waiting.has(id) ? <Waits /> : <span class="receipt">{RECEIPTS[status] ?? ''}</span>)}
              </span>
            </li>
          )
        })}
        {messages.length === 0 && <li class="muted none">No messages yet</li>}
      </ul>
      <Compose label={`Message to ${other}`} action="Send" onSend={(text) => pane.send(text)} />
    </section>
  )
}

const RECEIPTS: Readonly<Record<string, string>> = { pending_sync: 'stored', synced: 'delivered', read: 'read' }
