import { useEffect, useRef, useState } from 'preact/hooks'
import { clock } from '../api/clock'

const SHOWN_MS = 2000

/** A command line with a button that copies it. */
export function Command({ text }: { text: string }) {
  const code = useRef<HTMLElement>(null)
  const [result, setResult] = useState<string | null>(null)
  useEffect(() => (result === null ? undefined : clock.schedule(() => setResult(null), SHOWN_MS)), [result])
  const copy = async (): Promise<void> => {
    try {
      await navigator.clipboard.writeText(text)
      setResult('Copied')
    } catch {
      // Without the right to write to the clipboard, the text is selected for the keyboard.
      if (code.current) getSelection()?.selectAllChildren(code.current)
      setResult('Selected')
    }
  }
  return (
    <span class="command">
      <code ref={code}>
        {text.split(' ').map((word, index) => (
          <span key={index}>
            {index > 0 && ' '}
            <span class="word">{word}</span>
          </span>
        ))}
      </code>
      <button type="button" class="copy" aria-label={`Copy ${text}`} onClick={() => void copy()}>
        {result ?? 'Copy'}
      </button>
    </span>
  )
}
