import { Fragment } from 'preact'

/** A name that breaks after its underscores, dots and dashes, if it must. */
export function Name({ text }: { text: string }) {
  const parts = text.split(/(?<=[_.-])/)
  return (
    <span class="name">
      {parts.map((part, index) => (
        <Fragment key={index}>
          {index > 0 && <wbr />}
          {part}
        </Fragment>
      ))}
    </span>
  )
}
