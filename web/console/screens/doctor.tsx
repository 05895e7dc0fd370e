import { url } from '../../api/client'
import type { DoctorCheck, Level } from '../../api/types'
import { Command } from '../../parts/command'
import { count } from '../../parts/format'
import { useResource } from '../../parts/hooks'
import { Mark, State } from '../../parts/level'
import { Loaded } from '../../parts/loaded'
import { setParams } from '../location'
import type { Params } from '../routes'

const ORDER: Level[] = ['fail', 'warn', 'ok']
const TITLES: Record<Level, string> = { fail: 'Failures', warn: 'Warnings', ok: 'In order' }

export function Doctor({ params }: { params: Params }) {
  const resource = useResource<{ checks: DoctorCheck[] }>(url(['doctor']), null, 120_000)
  const onlyProblems = params['only'] === 'problems'
  return (
    <>
      <div class="filters">
        <button type="button" class="primary" disabled={resource.loading} onClick={resource.reload}>
          {resource.loading ? 'Checking…' : 'Run again'}
        </button>
        <label class="check">
          <input
            type="checkbox"
            checked={onlyProblems}
            onChange={(event) => setParams({ only: event.currentTarget.checked ? 'problems' : null })}
          />
          Only failures and warnings
        </label>
      </div>
      <Loaded resource={resource} live={false}>
        {({ checks }) => (
          <>
            <output class="lead">
              {count(checks.length, 'check')}:{' '}
              {ORDER.map((level) => {
                const found = checks.filter((check) => check.level === level).length
                return (
                  <State key={level} level={found === 0 ? 'none' : level}>
                    {countText(level, found)}
                  </State>
                )
              })}
            </output>
            {ORDER.filter((level) => !onlyProblems || level !== 'ok').map((level) => (
              <Group key={level} level={level} checks={checks.filter((check) => check.level === level)} />
            ))}
          </>
        )}
      </Loaded>
    </>
  )
}

function countText(level: Level, found: number): string {
  if (level === 'ok') return `${found} in order`
  return count(found, level === 'fail' ? 'failure' : 'warning')
}

function Group({ level, checks }: { level: Level; checks: DoctorCheck[] }) {
  if (checks.length === 0) return null
  return (
    <section class="panel">
      <h2>
        {TITLES[level]} <span class="badge">{checks.length}</span>
      </h2>
      <ul class={level === 'ok' ? 'doctor compact' : 'doctor'}>
        {checks.map((check) => (
          <li key={check.name}>
            <Mark level={level} />
            <div>
              <h3>{check.name}</h3>
              <p>{check.found}</p>
              {level !== 'ok' && check.meaning && <p class="sub">{check.meaning}</p>}
              {level !== 'ok' && check.fix.length > 0 && (
                <div class="fixes">
                  {check.fix.map((line) => (
                    <Command key={line} text={line} />
                  ))}
                </div>
              )}
              {level !== 'ok' && check.then && <p class="sub">Then: {check.then}</p>}
            </div>
          </li>
        ))}
      </ul>
    </section>
  )
}
