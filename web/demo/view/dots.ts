const SVG = 'http://www.w3.org/2000/svg'
const RADIUS = 4.5

type Dot = {
  readonly circle: SVGCircleElement
  readonly path: SVGPathElement
  readonly from: number
  readonly ms: number
}

/** Moves dots along the paths of a drawing. Where the user wants less motion there are none. */
export class Dots {
  readonly #layer: SVGGElement
  readonly #still: MediaQueryList
  #dots: readonly Dot[] = []
  #frame = 0

  constructor(layer: SVGGElement) {
    this.#layer = layer
    this.#still = matchMedia('(prefers-reduced-motion: reduce)')
  }

  send(path: SVGPathElement | null, kind: string, ms: number, delayMs = 0): void {
    if (!path || this.#still.matches || document.hidden) return
    const circle = document.createElementNS(SVG, 'circle')
    circle.setAttribute('r', String(RADIUS))
    circle.setAttribute('class', `dot ${kind}`)
    this.#dots = [...this.#dots, { circle, path, from: performance.now() + delayMs, ms }]
    if (this.#frame === 0) this.#frame = requestAnimationFrame(this.#move)
  }

  stop(): void {
    cancelAnimationFrame(this.#frame)
    for (const { circle } of this.#dots) circle.remove()
    this.#dots = []
  }

  readonly #move = (now: number): void => {
    this.#dots = this.#dots.filter(({ circle, path, from, ms }) => {
      const share = (now - from) / ms
      if (share < 0) return true
      if (share >= 1) {
        circle.remove()
        return false
      }
      const eased = share < 0.5 ? 2 * share * share : 1 - 2 * (1 - share) * (1 - share)
      const { x, y } = path.getPointAtLength(eased * path.getTotalLength())
      circle.setAttribute('cx', x.toFixed(1))
      circle.setAttribute('cy', y.toFixed(1))
      if (!circle.parentNode) this.#layer.append(circle)
      return true
    })
    this.#frame = this.#dots.length > 0 ? requestAnimationFrame(this.#move) : 0
  }
}
