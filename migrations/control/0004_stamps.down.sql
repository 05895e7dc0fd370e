ALTER TABLE posduif.credentials DROP COLUMN kept_session;
ALTER TABLE posduif.credentials DROP COLUMN stamp;
