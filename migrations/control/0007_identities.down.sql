DROP TABLE posduif.identities;
-- Users without a password could not log in before.
DELETE FROM posduif.credentials WHERE password_hash IS NULL;
ALTER TABLE posduif.credentials ALTER COLUMN password_hash SET NOT NULL;
ALTER TABLE posduif.credentials DROP COLUMN stamped_at;
