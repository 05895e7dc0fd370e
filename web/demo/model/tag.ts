/** Four characters at the end of a text; a change that exists twice in Postgres is found by them. */
const TAG = /#([a-z0-9]{4})\b/g

const LETTERS = 'abcdefghijkmnpqrstuvwxyz23456789'

export function newTag(random: () => number = Math.random): string {
  return Array.from({ length: 4 }, () => LETTERS[Math.floor(random() * LETTERS.length)]).join('')
}

export function tagsOf(text: string): string[] {
  return [...text.matchAll(TAG)].map((match) => match[1] as string)
}

/** The text without its tag, and the tag. */
export function splitTag(text: string): { readonly text: string; readonly tag: string | null } {
  const match = /^(.*?)\s*#([a-z0-9]{4})$/s.exec(text)
  return match ? { text: match[1] as string, tag: match[2] as string } : { text, tag: null }
}

const KEY = 'posduif-demo-tags'
const TAGS_MAX = 2000

/** The tags that this page has written. They survive a reload, so that changes sent after it are checked too. */
export class Ledger {
  readonly #tags: Set<string>
  readonly #storage: Pick<Storage, 'getItem' | 'setItem'> | null

  constructor(storage: Pick<Storage, 'getItem' | 'setItem'> | null) {
    this.#storage = storage
    this.#tags = new Set((storage?.getItem(KEY) ?? '').split(' ').filter((tag) => tag !== ''))
  }

  get tags(): ReadonlySet<string> {
    return this.#tags
  }

  /** The text with a new tag instead of its former one. */
  mark(text: string): string {
    let tag = newTag()
    while (this.#tags.has(tag)) tag = newTag()
    this.add(tag)
    return `${splitTag(text.trim()).text} #${tag}`
  }

  add(tag: string): void {
    this.#tags.add(tag)
    this.#storage?.setItem(KEY, [...this.#tags].slice(-TAGS_MAX).join(' '))
  }

  /** The statement with new tags for those that were written before: running it twice is not one change twice. */
  refresh(statement: string): string {
    return statement.replace(TAG, (whole, tag: string) => (this.#tags.has(tag) ? `#${newTag()}` : whole))
  }
}
