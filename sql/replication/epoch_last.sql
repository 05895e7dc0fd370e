-- The last epoch of a slot. $1: slot name.
SELECT number, base FROM posduif.epochs WHERE slot = $1 ORDER BY number DESC LIMIT 1
