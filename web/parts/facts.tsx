import type { ComponentChildren } from 'preact'

export type Fact = [name: string, value: ComponentChildren]

/** Names with their values. */
export function Facts({ facts }: { facts: Fact[] }) {
  return (
    <dl class="facts">
      {facts.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value ?? <span class="none">–</span>}</dd>
        </div>
      ))}
    </dl>
  )
}
