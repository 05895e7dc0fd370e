/** Of the panel's own tree, which the styles of the page do not reach. */
export const STYLE = `
  :host {
    all: initial;
    color-scheme: light dark;
    --ground: #ffffff; --raised: #f3f4f6; --text: #1a1d21; --quiet: #54595f; --line: #c9cdd2; --mark: #0b57d0; --bad: #b3261e;
  }
  @media (prefers-color-scheme: dark) {
    :host {
      --ground: #16181b; --raised: #22252a; --text: #eceef0; --quiet: #a9b0b8; --line: #43484f; --mark: #8ab4f8; --bad: #ffb4ab;
    }
  }
  * { box-sizing: border-box; }
  button, input, select { font: inherit; color: inherit; }
  button, select, input[type=search] {
    background: var(--ground); border: 1px solid var(--line); border-radius: 4px; padding: 2px 8px; min-height: 24px;
  }
  button:hover { border-color: var(--mark); }
  button:disabled { color: var(--quiet); }
  :focus-visible { outline: 2px solid var(--mark); outline-offset: 1px; }
  .toggle, .panel { position: fixed; z-index: 2147483647; font: 13px/1.45 system-ui, sans-serif; color: var(--text); }
  .toggle { inset: auto 12px 12px auto; box-shadow: 0 1px 4px rgb(0 0 0 / 30%); }
  .panel {
    inset: auto 0 0 0; height: min(45vh, 480px); display: flex; flex-direction: column;
    background: var(--ground); border-top: 2px solid var(--mark);
  }
  .panel[hidden] { display: none; }
  header, .bar { display: flex; flex-wrap: wrap; gap: 4px 12px; align-items: center; padding: 4px 12px; }
  header { background: var(--raised); border-bottom: 1px solid var(--line); }
  h2 { font-size: inherit; margin: 0; }
  .summary { flex: 1; margin: 0; color: var(--quiet); }
  [role=tablist] { display: flex; gap: 4px; }
  [role=tab][aria-selected=true] { border-color: var(--mark); box-shadow: inset 0 -2px var(--mark); }
  [role=tabpanel] { flex: 1; min-height: 0; display: flex; flex-direction: column; }
  [role=tabpanel][hidden] { display: none; }
  .scroll { flex: 1; min-height: 0; overflow: auto; padding: 0 12px 8px; }
  table { border-collapse: collapse; min-width: 100%; }
  th, td { text-align: left; vertical-align: top; padding: 2px 12px 2px 0; border-bottom: 1px solid var(--line); }
  th { position: sticky; top: 0; background: var(--ground); white-space: nowrap; }
  td { font: 12px/1.5 ui-monospace, monospace; max-width: 40ch; overflow-wrap: break-word; }
  td span { white-space: nowrap; }
  td button + button { margin-left: 4px; }
  pre { font: 12px/1.5 ui-monospace, monospace; margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
  fieldset { border: 0; margin: 0; padding: 8px 12px; display: grid; gap: 6px; justify-items: start; }
  legend { padding: 0; color: var(--quiet); }
  label { display: inline-flex; gap: 6px; align-items: center; min-height: 24px; }
  .bad { color: var(--bad); }
  .note { color: var(--quiet); margin: 0; }
  @media (prefers-reduced-motion: no-preference) { .panel { scroll-behavior: smooth; } }`
