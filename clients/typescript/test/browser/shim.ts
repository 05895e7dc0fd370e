// What the suite of storages uses of node:test and node:assert, for a page.

type Case = { readonly name: string; readonly run: () => Promise<void> }

const cases: Case[] = []

export function describe(_name: string, define: () => void): void {
  define()
}

export function test(name: string, run: () => Promise<void>): void {
  cases.push({ name, run })
}

/** Runs all tests, and returns those that failed. */
export async function runAll(): Promise<{ readonly count: number; readonly failures: string[] }> {
  const failures: string[] = []
  for (const { name, run } of cases) {
    try {
      await run()
    } catch (error) {
      failures.push(`${name}: ${error instanceof Error ? error.message : String(error)}`)
    }
  }
  return { count: cases.length, failures }
}

function isEqual(one: unknown, other: unknown): boolean {
  if (Object.is(one, other)) return true
  if (typeof one !== 'object' || typeof other !== 'object' || one === null || other === null) return false
  if (Array.isArray(one) !== Array.isArray(other)) return false
  const [names, others] = [Object.keys(one), Object.keys(other)]
  const [a, b] = [one as Record<string, unknown>, other as Record<string, unknown>]
  return names.length === others.length && names.every((name) => name in b && isEqual(a[name], b[name]))
}

const assert = {
  equal(one: unknown, other: unknown): void {
    if (!Object.is(one, other)) throw new Error(`${String(one)} is not ${String(other)}`)
  },
  deepEqual(one: unknown, other: unknown): void {
    if (!isEqual(one, other)) throw new Error(`${JSON.stringify(one)} is not ${JSON.stringify(other)}`)
  },
  async rejects(promise: Promise<unknown>, type?: abstract new (...values: never[]) => unknown): Promise<void> {
    const error = await promise.then(
      () => null,
      (reason: unknown) => reason ?? new Error('no reason'),
    )
    if (error === null) throw new Error('the promise did not reject')
    if (type && !(error instanceof type)) throw new Error(`it rejected with ${String(error)}`)
  },
}

export default assert
