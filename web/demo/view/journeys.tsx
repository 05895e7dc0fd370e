import type { Demo } from '../model/demo'
import { delivered, published, type Journey } from '../model/journey'
import { splitTag } from '../model/tag'
import { useSnapshot } from './hooks'

const SHOWN = 6

/** The last changes, with the milliseconds since their commit at each stop. */
export function Journeys({ demo }: { readonly demo: Demo }) {
  const journeys = useSnapshot(demo.feed.journeys)
  const tasks = useSnapshot(demo.bob.tasks).rows
  const messages = useSnapshot(demo.bob.messages).rows
  const nameOf = ({ table, rowId }: Journey): string => {
    const text = tasks.find(({ id }) => id === rowId)?.title ?? messages.find(({ id }) => id === rowId)?.content
    return text === undefined ? table : splitTag(text).text
  }
  const shown = journeys.slice(-SHOWN).reverse()
  return (
    <table class="journeys">
      <caption class="visually-hidden">The last changes, with milliseconds since the commit</caption>
      <thead>
        <tr>
          <th scope="col">ms since commit</th>
          <th scope="col">published</th>
          <th scope="col">durable</th>
          <th scope="col">Joe got it</th>
          <th scope="col">sees it</th>
          <th scope="col">Bob got it</th>
          <th scope="col">sees it</th>
        </tr>
      </thead>
      <tbody>
        {shown.map((journey) => (
          <tr key={journey.id}>
            <th scope="row">
              <span class={`op ${journey.op}`}>{journey.op}</span> {nameOf(journey)}
            </th>
            <td>{published(journey, figure)}</td>
            <td>{figure(journey.durableMs)}</td>
            <Stops stops={journey.panes.joe} />
            <Stops stops={journey.panes.bob} />
          </tr>
        ))}
        {shown.length === 0 && (
          <tr>
            <td colSpan={7} class="muted none">
              No change yet: add a task, or run the INSERT below
            </td>
          </tr>
        )}
      </tbody>
    </table>
  )
}

function Stops({ stops }: { readonly stops: Journey['panes']['joe'] }) {
  return (
    <>
      <td>{delivered(stops, figure)}</td>
      <td class="screen">{stops.isOwn ? <span class="muted">own</span> : figure(stops.screen)}</td>
    </>
  )
}

/** Milliseconds without their unit, which the head has. */
function figure(value: number | null | undefined): string {
  if (value === null || value === undefined) return '·'
  return value < 100 ? value.toFixed(1) : Math.round(value).toLocaleString('en')
}
