import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { Faults, isWriting, lastRepeat, wrote, type Upload } from '../../demo/model/faults'

const ENGINE = 'http://engine.example'
const DEVICE = { 'x-device-id': 'joes-phone', authorization: 'Bearer right' }

type Sent = { readonly url: string; readonly init: RequestInit }

/** A seam before a server that answers with this, and what the server has received. */
function seam(answer: () => Promise<Response> | Response) {
  const sent: Sent[] = []
  const server: typeof fetch = async (input, init = {}) => {
    sent.push({ url: String(input), init })
    init.signal?.throwIfAborted()
    return answer()
  }
  let now = 0
  return { faults: new Faults(server, () => (now += 1)), sent }
}

const results = (...statuses: string[]) => Response.json({ results: statuses.map((status) => ({ status })) })

const upload = (faults: Faults, ...seqs: number[]) =>
  faults.fetch(`${ENGINE}/api/sync/outgoing`, {
    method: 'POST',
    headers: DEVICE,
    body: JSON.stringify({ items: seqs.map((seq) => ({ seq, table: 'tasks', id: `row ${seq}` })) }),
  })

describe('offline', () => {
  test('offline_rejects_without_a_request', async () => {
    const { faults, sent } = seam(() => results())
    faults.setOffline(true)
    await assert.rejects(faults.fetch(`${ENGINE}/health`), TypeError)
    assert.equal(sent.length, 0)
  })

  test('going_offline_ends_an_open_stream', async () => {
    let received: AbortSignal | null | undefined
    const faults = new Faults(async (_, init) => {
      received = init?.signal
      const body = new ReadableStream({
        start: (control) => init?.signal?.addEventListener('abort', () => control.error(init.signal?.reason)),
      })
      return new Response(body)
    })
    const response = await faults.fetch(`${ENGINE}/sse/mobile/joes-phone`)
    const reading = response.body?.getReader().read()
    faults.setOffline(true)
    await assert.rejects(Promise.resolve(reading), TypeError)
    assert.equal(received?.aborted, true)
  })

  test('abort_of_the_client_reaches_the_request', async () => {
    const { faults } = seam(() => new Response('ok'))
    const control = new AbortController()
    control.abort()
    await assert.rejects(faults.fetch(`${ENGINE}/health`, { signal: control.signal }), { name: 'AbortError' })
  })

  test('online_again_sends_requests', async () => {
    const { faults, sent } = seam(() => new Response('ok'))
    faults.setOffline(true)
    faults.setOffline(false)
    await faults.fetch(`${ENGINE}/health`)
    assert.equal(sent.length, 1)
  })
})

describe('lost answer', () => {
  test('request_arrives_and_its_answer_does_not', async () => {
    const { faults, sent } = seam(() => results('applied'))
    faults.setLoseNext(true)
    await assert.rejects(upload(faults, 1), TypeError)
    assert.equal(sent.length, 1)
    const [recorded] = faults.uploads.getSnapshot()
    assert.deepEqual(recorded?.statuses, ['applied'])
    assert.equal(recorded?.isLost, true)
  })

  test('only_the_next_answer_of_an_upload_is_lost', async () => {
    const { faults } = seam(() => results('applied'))
    faults.setLoseNext(true)
    await faults.fetch(`${ENGINE}/api/sync/incoming`, { method: 'GET', headers: DEVICE })
    await assert.rejects(upload(faults, 1), TypeError)
    const answer = await upload(faults, 1)
    assert.deepEqual(await answer.json(), { results: [{ status: 'applied' }] })
  })

  test('repeat_is_found_with_both_answers', async () => {
    const answers = [results('applied', 'applied'), results('duplicate', 'duplicate', 'applied')]
    const { faults } = seam(() => answers.shift() as Response)
    faults.setLoseNext(true)
    await assert.rejects(upload(faults, 4, 5))
    await upload(faults, 4, 5, 6)
    const repeat = lastRepeat(faults.uploads.getSnapshot())
    assert.deepEqual(repeat?.seqs, [4, 5])
    assert.deepEqual(repeat?.first, ['applied', 'applied'])
    assert.deepEqual(repeat?.second, ['duplicate', 'duplicate'])
  })

  test('no_repeat_before_the_same_numbers_were_answered', async () => {
    const { faults } = seam(() => results('applied'))
    faults.setLoseNext(true)
    await assert.rejects(upload(faults, 4))
    assert.equal(lastRepeat(faults.uploads.getSnapshot()), null)
    await upload(faults, 5)
    assert.equal(lastRepeat(faults.uploads.getSnapshot()), null)
  })

  test('request_that_failed_is_no_lost_answer', async () => {
    const { faults } = seam(() => Promise.reject(new TypeError('refused')))
    await assert.rejects(upload(faults, 1))
    assert.equal(lastRepeat(faults.uploads.getSnapshot()), null)
    assert.equal(faults.uploads.getSnapshot()[0]?.statuses, null)
  })
})

describe('expired token', () => {
  test('one_request_of_the_device_has_a_wrong_token', async () => {
    const { faults, sent } = seam(() => new Response('ok'))
    faults.expireToken()
    await faults.fetch(`${ENGINE}/api/auth/login`, { method: 'POST' })
    await faults.fetch(`${ENGINE}/api/sync/incoming`, { headers: DEVICE })
    await faults.fetch(`${ENGINE}/api/sync/incoming`, { headers: DEVICE })
    const tokens = sent.map(({ init }) => new Headers(init.headers).get('authorization'))
    assert.deepEqual(tokens, [null, 'Bearer expired', 'Bearer right'])
    assert.equal(faults.deviceId.getSnapshot(), 'joes-phone')
  })
})

describe('own change', () => {
  const one: Upload = {
    startedAt: 100,
    at: 200,
    items: [{ seq: 1, table: 'tasks', op: 'edit', id: 'a' }],
    statuses: ['applied'],
    isLost: false,
  }

  test('commit_during_the_upload_is_its_own', () => {
    assert.equal(wrote([one], 'tasks', 'a', 150), true)
    assert.equal(wrote([{ ...one, at: null, statuses: null }], 'tasks', 'a', 500), true)
  })

  test('row_is_being_written_until_its_answer', () => {
    assert.equal(isWriting([one], 'tasks', 'a', 150), true)
    assert.equal(isWriting([{ ...one, at: null }], 'tasks', 'a', 500), true)
    assert.equal(isWriting([one], 'tasks', 'a', 201), false)
    assert.equal(isWriting([one], 'tasks', 'b', 150), false)
  })

  test('other_times_rows_and_refused_items_are_not', () => {
    assert.equal(wrote([one], 'tasks', 'a', 99), false)
    assert.equal(wrote([one], 'tasks', 'a', 201), false)
    assert.equal(wrote([one], 'tasks', 'b', 150), false)
    assert.equal(wrote([{ ...one, statuses: ['conflict'] }], 'tasks', 'a', 150), false)
  })
})
