import 'uplot/dist/uPlot.min.css'
import { useEffect, useRef } from 'preact/hooks'
import uPlot from 'uplot'
import { clockTime } from './format'
import { useStore } from './hooks'
import { stack } from './stack'
import { scheme } from './theme'

const TONES = ['accent', 'ok', 'warn', 'fail', 'muted', 'text'] as const

export type Tone = (typeof TONES)[number]

type Colour = (name: Tone | 'rule', kind?: Series['kind']) => string

export type Series = {
  label: string
  values: (number | null)[]
  tone: Tone
  kind?: 'line' | 'area' | 'bar'
  dash?: boolean
}

type Props = {
  /** What the chart shows, for those who do not see it. */
  label: string
  times: number[]
  series: Series[]
  format: (value: number | null) => string
  height?: number
  /** A line that the values should stay below. */
  bound?: { value: number; label: string } | null
  /** Moments, in seconds since 1970, at which an engine started. */
  marks?: number[]
  /** Seconds that the chart covers. */
  seconds: number
  /** Bars stand on each other. */
  stacked?: boolean
  /** Seconds that a bar covers. */
  barSeconds?: number
}

/** A chart of time series. Draws once for each change of its data, at most once a frame. */
export function Chart(props: Props) {
  const { label, height = 120 } = props
  const box = useRef<HTMLDivElement>(null)
  const readout = useRef<HTMLSpanElement>(null)
  const latest = useRef(props)
  latest.current = props
  const plot = useRef<uPlot | null>(null)
  const shown = useStore(scheme)
  const shape = props.series.map((one) => `${one.label} ${one.kind} ${one.tone}`).join()

  useEffect(() => {
    const element = box.current
    if (!element) return
    const chart = new uPlot(
      options(element, latest, (text) => {
        if (readout.current) readout.current.textContent = text
      }),
      data(latest.current),
      element,
    )
    plot.current = chart
    const observer = new ResizeObserver(() => {
      const width = Math.floor(element.clientWidth)
      if (width > 0 && width !== chart.width) chart.setSize({ width, height })
    })
    observer.observe(element)
    return () => {
      observer.disconnect()
      chart.destroy()
      plot.current = null
    }
  }, [shown, shape, height])

  useEffect(() => {
    const frame = requestAnimationFrame(() => plot.current?.setData(data(latest.current)))
    return () => cancelAnimationFrame(frame)
  }, [props.times, props.series, props.bound?.value])

  return (
    <div class="chart">
      <p class="legend">
        {props.series.map((one) => (
          <span key={one.label} class={`key ${one.tone} ${one.kind ?? 'line'} ${one.dash ? 'dash' : ''}`}>
            {one.label}
          </span>
        ))}
        {props.bound && <span class="key fail dash">{props.bound.label}</span>}
        <span class="readout" ref={readout} aria-hidden="true" />
      </p>
      <div ref={box} role="img" aria-label={label} style={{ height: `${height}px` }} />
    </div>
  )
}

function data(props: Props): uPlot.AlignedData {
  const values = props.series.map((one) => one.values)
  // The highest sum is drawn first, so that the lower ones stand in front of it.
  return [props.times, ...(props.stacked ? stack(values).reverse() : values)] as uPlot.AlignedData
}

function options(box: HTMLElement, latest: { current: Props }, read: (text: string) => void): uPlot.Options {
  const { series, height = 120, stacked } = latest.current
  const isBar = latest.current.barSeconds !== undefined
  const colour = colours(box)
  const style = getComputedStyle(box)
  const font = `11px ${style.fontFamily}`
  const drawn = stacked ? [...series].reverse() : series
  const axis = { stroke: colour('muted'), font, ticks: { show: false }, grid: { stroke: colour('rule'), width: 1 } }
  return {
    width: Math.max(1, Math.floor(box.clientWidth)),
    height,
    padding: [8, 4, 0, 0],
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
    scales: {
      x: { time: true, range: (_, min, max) => timeRange(latest.current, min, max) },
      y: { range: (_, __, max) => [0, ceiling(max, latest.current.bound?.value, isBar ? 4 : 1)] },
    },
    axes: [
      {
        ...axis,
        grid: { show: false },
        size: 22,
        space: 64,
        values: timeLabels,
      },
      { ...axis, size: AXIS_PX, space: 28, values: (_, splits) => splits.map((value) => latest.current.format(value)) },
    ],
    series: [
      {},
      ...drawn.map((one) => ({
        label: one.label,
        stroke: colour(one.tone, one.kind === 'bar' ? 'bar' : 'line'),
        width: one.kind === 'bar' ? 0 : 1.5,
        ...(one.kind === 'line' || one.kind === undefined ? {} : { fill: colour(one.tone, one.kind) }),
        ...(one.dash ? { dash: [4, 3] } : {}),
        ...(one.kind === 'bar' && uPlot.paths.bars ? { paths: uPlot.paths.bars({ size: [0.7, 40], align: 1 }) } : {}),
        points: { show: false },
      })),
    ],
    hooks: {
      draw: [(chart) => drawLines(chart, latest.current, colour)],
      setCursor: [(chart) => read(readingAt(chart.cursor.idx, latest.current))],
    },
  }
}

function readingAt(index: number | null | undefined, props: Props): string {
  const at = index == null ? undefined : props.times[index]
  if (index == null || at === undefined) return ''
  const values = props.series.map((one) => `${one.label} ${props.format(one.values[index] ?? null)}`)
  return `${clockTime(at * 1000)}  ${values.join('  ')}`
}

/** Width of the axis at the left. */
const AXIS_PX = 62

/** Half of the width of a character of a label, which is centred. */
const LABEL_CHARACTER_PX = 3.5

/** A bar stands to the right of its time. */
function timeRange({ seconds, barSeconds = 0 }: Props, min: number, max: number): [number, number] {
  return max == null ? [min, max] : [max + barSeconds - seconds, max + barSeconds]
}

/** Times of the axis, without those that would be cut off at the right. */
function timeLabels(chart: uPlot, splits: number[]): (string | null)[] {
  const [first, second] = splits
  const length = first !== undefined && second !== undefined && second - first < 60 ? 8 : 5
  const end = chart.width - AXIS_PX - length * LABEL_CHARACTER_PX
  return splits.map((at) => (chart.valToPos(at, 'x') > end ? null : clockTime(at * 1000).slice(0, length)))
}

/** With a bound, how far the values are from it is what the chart shows. */
function ceiling(max: number | null, bound: number | undefined, least: number): number {
  const top = (max ?? 0) * 1.15
  if (bound !== undefined) return Math.max(top, bound * 1.15)
  return top > 0 ? Math.max(top, least > 1 ? least : 0) : least
}

function drawLines(chart: uPlot, props: Props, colour: Colour): void {
  const { ctx, bbox } = chart
  ctx.save()
  ctx.lineWidth = devicePixelRatio
  ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio])
  const line = (x0: number, y0: number, x1: number, y1: number): void => {
    ctx.beginPath()
    ctx.moveTo(x0, y0)
    ctx.lineTo(x1, y1)
    ctx.stroke()
  }
  const max = chart.scales['y']?.max
  if (props.bound && max != null && props.bound.value <= max) {
    const y = Math.round(chart.valToPos(props.bound.value, 'y', true))
    ctx.strokeStyle = colour('fail')
    line(bbox.left, y, bbox.left + bbox.width, y)
  }
  ctx.strokeStyle = colour('text')
  for (const mark of props.marks ?? []) {
    const x = Math.round(chart.valToPos(mark, 'x', true))
    if (x >= bbox.left && x <= bbox.left + bbox.width) line(x, bbox.top, x, bbox.top + bbox.height)
  }
  ctx.restore()
}

/** A canvas needs the colours that the style sheet computes for this scheme. */
function colours(box: HTMLElement): Colour {
  const probe = document.createElement('span')
  box.append(probe)
  const read = (name: string): string => {
    probe.style.color = `var(--${name})`
    return getComputedStyle(probe).color
  }
  const found = new Map(
    [...TONES, 'rule', 'accent-faint', 'bar-muted', 'bar-warn', 'bar-fail'].map((name) => [name, read(name)]),
  )
  probe.remove()
  return (name, kind) => {
    const special = kind === 'area' ? `${name}-faint` : kind === 'bar' ? `bar-${name}` : name
    return found.get(special) ?? found.get(name) ?? 'gray'
  }
}
