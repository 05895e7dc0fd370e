import { useEffect, useRef } from 'preact/hooks'
import { clock } from '../api/clock'

const PAUSE_MS = 300

/** A text filter. Its value is taken after a pause of typing, or at once by Enter. */
export function Field(props: { label: string; value: string; onChange: (value: string) => void; list?: string[] }) {
  const { label, value, onChange, list } = props
  const cancel = useRef<() => void>(() => {})
  useEffect(() => () => cancel.current(), [])
  const id = list ? `list-${label.toLowerCase()}` : undefined
  return (
    <label>
      {label}
      <input
        type="search"
        defaultValue={value}
        autocomplete="off"
        spellcheck={false}
        {...(id ? { list: id } : {})}
        onInput={(event) => {
          const text = event.currentTarget.value.trim()
          cancel.current()
          cancel.current = clock.schedule(() => onChange(text), PAUSE_MS)
        }}
        onKeyDown={(event) => {
          if (event.key !== 'Enter') return
          cancel.current()
          onChange(event.currentTarget.value.trim())
        }}
      />
      {list && (
        <datalist id={id}>
          {list.map((one) => (
            <option key={one} value={one} />
          ))}
        </datalist>
      )}
    </label>
  )
}
