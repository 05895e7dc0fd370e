ALTER TABLE posduif.credentials DROP COLUMN kept_session, DROP COLUMN stamp;
