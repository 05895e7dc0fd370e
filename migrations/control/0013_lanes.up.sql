-- The lane that has the tenant's streams: `main`, or one of `lanes` in the configuration.
ALTER TABLE posduif.tenants
    ADD COLUMN lane text NOT NULL DEFAULT 'main' CHECK (lane ~ '^[a-z][a-z0-9_]{0,23}$');
