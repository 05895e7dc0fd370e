import type { ComponentChildren } from 'preact'
import type { Level } from '../api/types'

const SHAPES: Record<Level | 'none', string> = { ok: '●', warn: '▲', fail: '■', none: '○' }
const WORDS: Record<Level | 'none', string> = { ok: 'ok', warn: 'warning', fail: 'failure', none: 'inactive' }

/** A level as a shape, a colour and, for those who see neither, a word. */
export function Mark({ level }: { level: Level | 'none' }) {
  return (
    <span class={`mark ${level}`} role="img" aria-label={WORDS[level]}>
      {SHAPES[level]}
    </span>
  )
}

/** A level with its own word. */
export function State({ level, children }: { level: Level | 'none'; children: ComponentChildren }) {
  return (
    <span class="state">
      <span class={`mark ${level}`} aria-hidden="true">
        {SHAPES[level]}
      </span>
      <span>{children}</span>
    </span>
  )
}
