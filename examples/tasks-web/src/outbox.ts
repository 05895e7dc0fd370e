import { useEffect, useState } from 'react'
import type { OutboxEntry } from '@posduif/client'
import { posduif } from './posduif'

/** What waits and what the user has to decide, read again after each change of the status. */
export function useOutbox(): readonly OutboxEntry[] {
  const [entries, setEntries] = useState<readonly OutboxEntry[]>([])
  useEffect(() => {
    let isGone = false
    const read = async () => {
      const list = await posduif.outbox.list()
      if (!isGone) setEntries(list)
    }
    void read()
    const stop = posduif.status.subscribe(() => void read())
    return () => {
      isGone = true
      stop()
    }
  }, [])
  return entries
}
