-- The last epochs of a slot, newest first. $1: slot name; $2 bigint: how many.
SELECT number, id, reason, start_lsn, started_at FROM posduif.epochs WHERE slot = $1 ORDER BY number DESC LIMIT $2
