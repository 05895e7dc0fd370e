-- The security stamp of a user. Sessions, access tokens and tickets carry it and are worthless when it has changed: by a
-- new password, by disabling or enabling the user, and by the end of all sessions.
ALTER TABLE posduif.credentials
    ADD COLUMN stamp uuid NOT NULL DEFAULT gen_random_uuid(),
    -- The session that has changed the stamp and goes on.
    ADD COLUMN kept_session uuid;
