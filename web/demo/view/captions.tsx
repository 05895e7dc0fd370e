import { useRef, useState } from 'preact/hooks'
import type { Demo } from '../model/demo'
import type { Director } from '../model/director'
import { STEPS, type StepId } from '../model/story'
import { useSnapshot } from './hooks'

type Caption = { readonly name: string; readonly title: string; readonly text: string; readonly watch: string }

const CAPTIONS: Record<StepId, Caption> = {
  sql: {
    name: 'One INSERT',
    title: 'One INSERT, two screens',
    text: 'SQL writes a row. The log of Postgres carries it through Redis to Joe’s phone and to Bob’s browser.',
    watch: 'Watch the dot, and the milliseconds behind it.',
  },
  offline: {
    name: 'Offline',
    title: 'The phone goes offline',
    text: 'In a tunnel Joe renames a task, ticks another and writes a message. All three are stored, and shown.',
    watch: 'Watch the badge on the phone: it counts what waits.',
  },
  conflict: {
    name: 'Conflict',
    title: 'Bob edits the same row',
    text: 'Bob renames what Joe has renamed, then the phone returns. Neither version overwrites the other.',
    watch: 'Both versions appear on the phone. Choose one there.',
  },
  lost: {
    name: 'Lost answer',
    title: 'The answer gets lost',
    text: 'Joe adds three tasks. The engine applies them, but the answer never arrives, so the phone sends them again.',
    watch: 'Watch the badge stay at three until the repeat, and Postgres stay at three rows.',
  },
  kill: {
    name: 'kill -9',
    title: 'kill -9',
    text: 'The engine dies without a goodbye while both sides write. Another process takes over.',
    watch: 'Watch both devices reconnect, send what waited, and the counters stay at 0.',
  },
  revoke: {
    name: 'Revoked',
    title: 'The phone is revoked',
    text: 'Joe has lost the phone. An admin revokes it, and its stream and its token end.',
    watch: 'Watch its pane go dark at once.',
  },
}

export function Captions({ demo, director }: { readonly demo: Demo; readonly director: Director }) {
  const outcomes = useSnapshot(demo.outcomes)
  const [current, setCurrent] = useState<StepId>('sql')
  const [busy, setBusy] = useState<StepId | null>(null)
  const panel = useRef<HTMLDivElement>(null)
  const { title, text, watch } = CAPTIONS[current]
  const outcome = outcomes[current]
  const next = STEPS[STEPS.indexOf(current) + 1]
  const perform = async () => {
    if (busy !== null) return
    setBusy(current)
    await director.perform(current)
    setBusy(null)
  }
  const go = (step: StepId) => {
    setCurrent(step)
    panel.current?.focus({ preventScroll: true })
  }
  return (
    <section class="captions" aria-label="The story in six steps">
      <ol>
        {STEPS.map((step, place) => (
          <li key={step}>
            <button
              type="button"
              aria-current={step === current ? 'step' : undefined}
              class={outcomes[step] === undefined ? 'step' : 'step done'}
              onClick={() => setCurrent(step)}
            >
              <span class="number" aria-hidden="true">
                {outcomes[step] === undefined ? place + 1 : '✓'}
              </span>
              <span class="step-name">
                {CAPTIONS[step].name}
                {outcomes[step] !== undefined && <span class="visually-hidden">, done</span>}
              </span>
            </button>
          </li>
        ))}
      </ol>
      <div class="caption" ref={panel} tabIndex={-1}>
        <div>
          <h2>{title}</h2>
          <p>{text}</p>
          <p class={outcome === undefined ? 'watch' : 'outcome'} aria-hidden={outcome !== undefined}>
            {outcome ?? watch}
          </p>
          <p class="visually-hidden" role="status">
            {outcome === undefined ? '' : `Step ${STEPS.indexOf(current) + 1} is done. ${outcome}`}
          </p>
        </div>
        <div class="caption-actions">
          <button
            type="button"
            class={outcome === undefined ? 'primary' : ''}
            aria-disabled={busy !== null}
            onClick={() => void perform()}
          >
            {outcome === undefined ? 'Do it' : 'Do it again'}
          </button>
          {outcome !== undefined && next !== undefined && (
            <button type="button" class="primary" onClick={() => go(next)}>
              Next: {CAPTIONS[next].name}
            </button>
          )}
        </div>
      </div>
    </section>
  )
}
