-- Notifies the replicator, at this transaction's position in the log, that a tenant exists. $1 text: name.
SELECT pg_logical_emit_message(true, 'posduif.tenant', $1)
