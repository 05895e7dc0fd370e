-- Resolves a conflict; one row with the outcome. $1 uuid: user; $2 uuid: conflict; $3 text: client, server or merged;
-- $4 text or null: the merged content; $5 bigint or null: the version of the message on which the decision is based;
-- $6 text: the tenant's schema; $7 jsonb: the memberships of each kind of group, and the values that name the user in them.
SELECT outcome, version FROM {schema}.resolve_conflict($1, $2, $3, $4, $5, $6, $7)
