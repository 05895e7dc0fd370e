/** There is no demo to show. */
export function Trouble({ message }: { readonly message: string }) {
  return (
    <main class="trouble">
      <h1>The demo has not started</h1>
      <p>{message}</p>
      <p>
        This page is served by <code>posduif dev</code>. Check that it runs, then load the page again.
      </p>
      <button type="button" onClick={() => location.reload()}>
        Load again
      </button>
    </main>
  )
}
