import { useId } from 'preact/hooks'
import type { SqlResult } from '../model/api'
import type { Sql } from '../model/sql'
import { ms } from '../model/story'
import { useSnapshot } from './hooks'

export function SqlBox({ sql }: { readonly sql: Sql }) {
  const text = useSnapshot(sql.text)
  const outcome = useSnapshot(sql.outcome)
  const id = useId()
  const run = () => void sql.run()
  return (
    <section class="sql" aria-label="SQL">
      <form
        onSubmit={(event) => {
          event.preventDefault()
          run()
        }}
      >
        <div class="sql-head">
          <label for={id}>SQL, as any program would write it</label>
          <div class="examples" role="group" aria-label="Examples">
            {sql.examples.map(({ name, statement }) => (
              <button type="button" class="chip" key={name} onClick={() => sql.text.set(statement())}>
                {name}
              </button>
            ))}
          </div>
        </div>
        <textarea
          id={id}
          rows={4}
          spellcheck={false}
          value={text}
          onInput={({ currentTarget }) => sql.text.set(currentTarget.value)}
          onKeyDown={(event) => {
            if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey)) return
            event.preventDefault()
            run()
          }}
        />
        <div class="sql-run">
          <button type="submit" class="primary" disabled={outcome.state === 'running'}>
            Run
          </button>
          <span class="muted">Ctrl + Enter</span>
        </div>
      </form>
      <div class="sql-result" role="region" aria-label="Result" aria-live="polite">
        {outcome.state === 'none' && <p class="muted">The result comes here.</p>}
        {outcome.state === 'running' && <p class="muted">Running</p>}
        {outcome.state === 'failed' && (
          <p class="error">
            <strong>{outcome.code}</strong> {outcome.message}
          </p>
        )}
        {outcome.state === 'done' && <Result result={outcome.result} />}
      </div>
    </section>
  )
}

function Result({ result: { command, columns, rows, truncated, ms: took } }: { readonly result: SqlResult }) {
  return (
    <>
      <p>
        <code>{command}</code> <span class="muted">in {ms(took)}</span>
        {truncated && <span class="muted">, the first {rows.length} rows</span>}
      </p>
      {columns.length > 0 && (
        <div class="scroll" tabIndex={0} role="group" aria-label="Rows">
          <table>
            <thead>
              <tr>
                {columns.map((column, place) => (
                  <th key={place} scope="col">
                    {column}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {rows.map((row, place) => (
                <tr key={place}>
                  {row.map((value, column) => (
                    <td key={column}>{value === null ? <span class="muted">null</span> : String(value)}</td>
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </>
  )
}
