-- Tells the replicator, in this transaction's place in the log, that a tenant exists. $1 text: name.
SELECT pg_logical_emit_message(true, 'posduif.tenant', $1)
