// The frames of a page, and what its main thread did in them. The functions for pages are serialized: they use nothing else.
import type { CDPSession, Page } from 'playwright-core'

type Watched = { begin: number; frames: number[]; peak: number }

/** Resolves when frames have come at their rate for a second, so that the browser has begun, or after ten. */
function steady(): Promise<void> {
  return new Promise((resolve) => {
    const since = performance.now()
    let [last, inTime] = [since, 0]
    const frame = (now: number) => {
      inTime = now - last < 25 ? inTime + 1 : 0
      last = now
      if (inTime >= 60 || now - since > 10_000) resolve()
      else requestAnimationFrame(frame)
    }
    requestAnimationFrame(frame)
  })
}

/** Notes the time of each frame in ms, and the most memory of scripts. The mark is in the trace, too. */
function watch(): void {
  const watched: Watched = { begin: performance.mark('frames').startTime, frames: [], peak: 0 }
  const frame = (now: number) => {
    watched.frames.push(now)
    const { usedJSHeapSize = 0 } = (performance as { memory?: { usedJSHeapSize: number } }).memory ?? {}
    watched.peak = Math.max(watched.peak, usedJSHeapSize)
    requestAnimationFrame(frame)
  }
  requestAnimationFrame(frame)
  Object.assign(globalThis, { watched })
}

type Event = {
  readonly name: string
  readonly ts: number
  readonly dur?: number
  readonly tdur?: number
  readonly pid: number
  readonly tid: number
  readonly args: { readonly name?: string; readonly src_file?: string; readonly src_func?: string }
}

/** A span of time in ms: how long the main thread had tasks in it, and what CPU time they took. */
export type Span = { readonly ms: number; readonly busy: number; readonly cpu: number; readonly what: string }

export type Frames = {
  /** All frames but the first. */
  readonly spans: readonly Span[]
  /** All tasks of the main thread of 1 ms and more. */
  readonly tasks: readonly Span[]
  readonly peak: number
}

/** Waits until the pages are steady, and records them; the result ends it, and has a part for each page. */
export async function record(browser: CDPSession, pages: readonly Page[]): Promise<() => Promise<Frames[]>> {
  for (const page of pages) await page.evaluate(steady)
  const events: Event[] = []
  browser.on('Tracing.dataCollected', ({ value }) => {
    // Those of a tenth of a millisecond and more, the marks, and the names.
    for (const event of value as unknown as Event[]) if ((event.dur ?? Infinity) >= 100) events.push(event)
  })
  const includedCategories = ['toplevel', 'blink.user_timing', '__metadata']
  await browser.send('Tracing.start', { traceConfig: { includedCategories } })
  for (const page of pages) await page.evaluate(watch)
  return async () => {
    const watched: Watched[] = []
    for (const page of pages) watched.push(await page.evaluate(() => (globalThis as unknown as { watched: Watched }).watched))
    const ended = new Promise((resolve) => browser.once('Tracing.tracingComplete', resolve))
    await browser.send('Tracing.end')
    await ended
    // The pages are the only ones that have marks, and mark one after the other.
    const marks = events.filter(({ name }) => name === 'frames').sort((one, other) => one.ts - other.ts)
    if (marks.length !== pages.length) throw new Error(`the trace has ${marks.length} of ${pages.length} marks`)
    return watched.map((page, place) => framesOf(page, marks[place]!, events))
  }
}

function framesOf({ begin, frames, peak }: Watched, mark: Event, events: readonly Event[]): Frames {
  const tasks: Event[] = []
  let end = 0
  const onMain = events.filter(({ dur, pid, tid }) => dur !== undefined && pid === mark.pid && tid === mark.tid)
  for (const event of onMain.sort((one, other) => one.ts - other.ts || other.dur! - one.dur!)) {
    // A task that runs within another one is a part of it.
    if (event.ts < mark.ts || event.ts + event.dur! <= end) continue
    end = event.ts + event.dur!
    tasks.push(event)
  }
  const spans: Span[] = []
  let next = 0
  for (const [place, last] of frames.slice(0, -1).entries()) {
    const [from, to] = [last, frames[place + 1]!].map((at) => mark.ts + (at - begin) * 1000) as [number, number]
    while (next < tasks.length && tasks[next]!.ts + tasks[next]!.dur! <= from) next += 1
    let [busy, cpu, most] = [0, 0, 0]
    let what = ''
    for (let each = next; each < tasks.length && tasks[each]!.ts < to; each += 1) {
      const task = tasks[each]!
      const part = Math.min(task.ts + task.dur!, to) - Math.max(task.ts, from)
      busy += part
      cpu += (part / task.dur!) * cpuOf(task)
      if (part > most) [most, what] = [part, nameOf(task)]
    }
    spans.push({ ms: (to - from) / 1000, busy: busy / 1000, cpu: cpu / 1000, what })
  }
  const long = tasks.filter(({ dur }) => dur! >= 1000)
  return {
    spans,
    tasks: long.map((task) => ({ ms: task.dur! / 1000, busy: task.dur! / 1000, cpu: cpuOf(task) / 1000, what: nameOf(task) })),
    peak,
  }
}

/** The clock of a thread advances in steps, and may be ahead. */
function cpuOf({ dur = 0, tdur = 0 }: Event): number {
  return Math.min(dur, tdur)
}

function nameOf({ name, args }: Event): string {
  return args.src_file ? `${args.src_file.replace(/^.*\//, '')} ${args.src_func ?? ''}` : name
}
