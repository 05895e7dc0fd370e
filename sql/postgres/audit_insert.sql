-- Adds an entry to the audit log. $1 text or null: tenant; $2 text: actor; $3 inet or null: address; $4 text: action;
-- $5 text or null: subject; $6 jsonb: detail.
INSERT INTO posduif.audit (tenant, actor, address, action, subject, detail) VALUES ($1, $2, $3, $4, $5, $6)
