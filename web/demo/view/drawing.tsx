import { useEffect, useRef } from 'preact/hooks'
import type { Demo } from '../model/demo'
import { PANES, published, type Journey, type PaneName } from '../model/journey'
import { ms } from '../model/story'
import { Dots } from './dots'
import { useSnapshot } from './hooks'

const WAL_MS = 450
const BRANCH_MS = 500
const UPLOAD_MS = 450

/** Postgres, engine and Redis with the paths between them, drawn to the scale of attention, not of time. */
export function Drawing({ demo }: { readonly demo: Demo }) {
  const engine = useSnapshot(demo.feed.engine)
  const redis = useSnapshot(demo.feed.redis)
  const journeys = useSnapshot(demo.feed.journeys)
  const newest = journeys.at(-1)
  const layer = useRef<SVGGElement>(null)
  const wal = useRef<SVGPathElement>(null)
  const branches = { joe: useRef<SVGPathElement>(null), bob: useRef<SVGPathElement>(null) }
  const uploads = { joe: useRef<SVGPathElement>(null), bob: useRef<SVGPathElement>(null) }
  useEffect(() => {
    if (!layer.current) return undefined
    const dots = new Dots(layer.current)
    const stops = [
      followChanges(demo, {
        change: () => dots.send(wal.current, 'down', WAL_MS),
        arrival: (pane) => dots.send(branches[pane].current, 'down', BRANCH_MS, WAL_MS),
      }),
      ...demo.panes.map(({ name, faults }) => {
        let last = faults.uploads.getSnapshot()
        return faults.uploads.subscribe(() => {
          const before = last
          last = faults.uploads.getSnapshot()
          const ended = last.findLast((upload) => upload.at !== null && !before.includes(upload))
          if (ended?.statuses) dots.send(uploads[name].current, ended.isLost ? 'up lost' : 'up', UPLOAD_MS)
        })
      }),
    ]
    return () => {
      for (const stop of stops) stop()
      dots.stop()
    }
  }, [demo])
  const isUp = engine.state !== 'down'
  return (
    <svg class="drawing" viewBox="0 0 440 228" role="img" aria-label={describe(newest, isUp)}>
      <path ref={uploads.joe} class="path up" d="M0 40 H152" />
      <path ref={uploads.bob} class="path up" d="M440 40 H288" />
      <path ref={wal} class={isUp ? 'path' : 'path cut'} d="M220 62 V160" />
      <path ref={branches.joe} class={isUp ? 'path' : 'path cut'} d="M220 160 V196 Q220 206 210 206 H0" />
      <path ref={branches.bob} class={isUp ? 'path' : 'path cut'} d="M220 160 V196 Q220 206 230 206 H440" />
      <text x="8" y="32" class="label">
        uploads
      </text>
      <text x="432" y="32" class="label end">
        uploads
      </text>
      <g ref={layer} />
      <Station x={220} y={40} name="Postgres" note="write-ahead log" />
      <g class={isUp ? 'engine' : 'engine down'}>
        <rect x="170" y="87" width="100" height="26" rx="13" />
        <text x="220" y="104.5">
          {isUp ? 'posduif' : 'killed'}
        </text>
      </g>
      <Station x={220} y={152} name="Redis" note="streams" isDown={redis.state === 'down'} />
      {newest && <Times journey={newest} />}
    </svg>
  )
}

type StationProps = {
  readonly x: number
  readonly y: number
  readonly name: string
  readonly note: string
  readonly isDown?: boolean
}

function Station({ x, y, name, note, isDown = false }: StationProps) {
  return (
    <g class={isDown ? 'station down' : 'station'}>
      <rect x={x - 68} y={y - 22} width="136" height="44" rx="8" />
      <text x={x} y={y - 2} class="name">
        {name}
      </text>
      <text x={x} y={y + 13} class="note">
        {isDown ? 'restarting' : note}
      </text>
    </g>
  )
}

/** The times of the newest change, at the places where it was. */
function Times({ journey }: { readonly journey: Journey }) {
  const { joe, bob } = journey.panes
  return (
    <g class="times" key={journey.id}>
      <text x="298" y="138">
        published {published(journey, ms)}
      </text>
      <text x="298" y="156">
        durable {ms(journey.durableMs)}
      </text>
      <text x="4" y="196">
        {arrival(joe)}
      </text>
      <text x="436" y="196" class="end">
        {arrival(bob)}
      </text>
    </g>
  )
}

function arrival({ isOwn, screen, delivered }: Journey['panes']['joe']): string {
  if (isOwn) return 'wrote it'
  if (screen !== undefined) return `on screen ${ms(screen)}`
  return delivered === undefined ? '' : `delivered ${ms(delivered)}`
}

function describe(journey: Journey | undefined, isUp: boolean): string {
  const paths = 'Changes go from the log of Postgres through the engine and Redis to both devices.'
  if (!isUp) return `${paths} The engine is down.`
  return journey ? `${paths} The newest was published after ${published(journey, ms)}.` : paths
}

type Travel = { readonly change: () => void; readonly arrival: (pane: PaneName) => void }

/** Reports each change once, and each of its arrivals once. */
function followChanges(demo: Demo, travel: Travel): () => void {
  const known = new Set(demo.feed.journeys.getSnapshot().map(({ id }) => id))
  const arrived = new Set<string>()
  return demo.feed.journeys.subscribe(() => {
    for (const { id, panes } of demo.feed.journeys.getSnapshot()) {
      if (!known.has(id)) {
        known.add(id)
        travel.change()
      }
      for (const pane of PANES) {
        const { delivered, screen, notified } = panes[pane]
        const name = `${id} ${pane}`
        if ((delivered ?? screen ?? notified) === undefined || arrived.has(name)) continue
        arrived.add(name)
        travel.arrival(pane)
      }
    }
  })
}
