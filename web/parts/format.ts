/** Sizes, rates and durations. 1 KiB is 1,024 bytes, as in the sentences of the engine. */

const NONE = '–'

const grouped = new Intl.NumberFormat('en', { maximumFractionDigits: 0 })

export function number(value: number | null | undefined): string {
  return value == null ? NONE : grouped.format(value)
}

/** A rate or a mean: one decimal below 10. */
export function decimal(value: number | null | undefined): string {
  if (value == null) return NONE
  return value !== 0 && Math.abs(value) < 9.95 ? value.toFixed(1) : grouped.format(value)
}

export function bytes(value: number | null | undefined): string {
  if (value == null) return NONE
  if (value < 1024) return `${Math.round(value)} B`
  const units = ['KiB', 'MiB', 'GiB', 'TiB', 'PiB']
  let scaled = value / 1024
  let unit = 0
  // A value that rounds to 1,024.0 belongs to the next unit.
  while (scaled >= 1023.95 && unit + 1 < units.length) {
    scaled /= 1024
    unit += 1
  }
  return `${scaled.toFixed(1)} ${units[unit]}`
}

export function rate(bytesPerSecond: number | null | undefined): string {
  return bytesPerSecond == null ? NONE : `${bytes(bytesPerSecond)}/s`
}

/** By its two greatest parts: `0.4 s`, `45 s`, `3 min 20 s`, `2 h 5 min`, `12 d 3 h`. */
export function duration(seconds: number | null | undefined): string {
  if (seconds == null) return NONE
  const value = Math.max(seconds, 0)
  if (value < 9.95) return `${value.toFixed(1)} s`
  if (value > 1e10) return 'centuries'
  const whole = Math.round(value)
  const two = (great: number, greatName: string, small: number, smallName: string): string =>
    small === 0 ? `${great} ${greatName}` : `${great} ${greatName} ${small} ${smallName}`
  if (whole < 60) return `${whole} s`
  if (whole < 3600) return two(Math.floor(whole / 60), 'min', whole % 60, 's')
  if (whole < 86_400) return two(Math.floor(whole / 3600), 'h', Math.floor((whole % 3600) / 60), 'min')
  return two(Math.floor(whole / 86_400), 'd', Math.floor((whole % 86_400) / 3600), 'h')
}

/** A duration in whole seconds, for ages that count up. */
export function age(seconds: number): string {
  return seconds < 59.5 ? `${Math.max(0, Math.floor(seconds))} s` : duration(seconds)
}

/** `0.4 ms`, `12 ms`, `1.2 s`. */
export function milliseconds(value: number | null | undefined): string {
  if (value == null) return NONE
  if (value < 9.95) return `${Math.max(value, 0).toFixed(1)} ms`
  if (value < 1000) return `${Math.round(value)} ms`
  return duration(value / 1000)
}

export function count(value: number, noun: string, plural: string = `${noun}s`): string {
  return `${number(value)} ${value === 1 ? noun : plural}`
}

/** The start of an id, enough to tell two apart by eye. */
export function shortId(id: string): string {
  return id.length > 13 ? `${id.slice(0, 4)}…${id.slice(-6)}` : id
}

/** Milliseconds since 1970 of what the API sends as a time: RFC 3339, or seconds since 1970. */
export function instant(value: string | number | null | undefined): number | null {
  if (value == null) return null
  const at = typeof value === 'number' ? value * 1000 : Date.parse(value)
  return Number.isNaN(at) ? null : at
}

const pad = (value: number, width = 2): string => String(value).padStart(width, '0')

/** `14:03:22` in the time zone of the reader. */
export function clockTime(at: number, withMilliseconds = false): string {
  const date = new Date(at)
  const time = `${pad(date.getHours())}:${pad(date.getMinutes())}:${pad(date.getSeconds())}`
  return withMilliseconds ? `${time}.${pad(date.getMilliseconds(), 3)}` : time
}

/** `2026-11-29 14:03:22`, without the day if it is today. */
export function dateTime(at: number, now: number): string {
  const date = new Date(at)
  const isToday = new Date(now).toDateString() === date.toDateString()
  const day = `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())}`
  return isToday ? clockTime(at) : `${day} ${clockTime(at)}`
}

export function dateTimeUtc(at: number): string {
  return new Date(at).toISOString().replace('T', ' ').replace('Z', ' UTC')
}

/** The fields of a JSON object as `name value`, with short ids. */
export function detailText(value: unknown): string {
  if (typeof value !== 'object' || value === null) return jsonText(value)
  return Object.entries(value)
    .map(([name, field]) => `${name.replaceAll('_', ' ')} ${typeof field === 'string' ? shortId(field) : jsonText(field)}`)
    .join(', ')
}

/** A JSON value on one line; texts without their quotes. */
export function jsonText(value: unknown): string {
  if (value == null) return ''
  if (typeof value === 'string') return value
  return JSON.stringify(value)
}
