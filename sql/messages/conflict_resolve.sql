-- Resolves a conflict; one row with the outcome. $1 uuid: user; $2 uuid: conflict; $3 text: client, server or merged;
-- $4 text or null: the merged content; $5 bigint or null: the version of the message on which the decision is based.
SELECT outcome, version FROM {schema}.resolve_conflict($1, $2, $3, $4, $5)
