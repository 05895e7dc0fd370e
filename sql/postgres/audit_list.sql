-- Entries of the audit log, newest first. $1 text or null: tenant; $2 text or null: actor; $3 text or null: action;
-- $4 timestamptz or null: at or after; $5 bigint: greater than this id; $6 bigint: most rows;
-- $7 bigint or null: less than this id; $8 text or null: subject.
SELECT id, at, tenant, actor, action, subject, address, detail
FROM posduif.audit
WHERE ($1::text IS NULL OR tenant = $1) AND ($2::text IS NULL OR actor = $2) AND ($3::text IS NULL OR action = $3)
  AND ($4::timestamptz IS NULL OR at >= $4) AND id > $5
  AND ($7::bigint IS NULL OR id < $7) AND ($8::text IS NULL OR subject = $8)
ORDER BY id DESC LIMIT $6
