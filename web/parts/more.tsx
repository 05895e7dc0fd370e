/** Asks for a longer list, if there is more. */
export function More({ hasMore, onMore }: { hasMore: boolean; onMore: () => void }) {
  if (!hasMore) return null
  return (
    <p class="more">
      <button type="button" onClick={onMore}>
        Show more
      </button>
    </p>
  )
}
