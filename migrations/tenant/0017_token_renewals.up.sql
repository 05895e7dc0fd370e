-- When a device has got another token by its key. The change of this column goes through the log: by it each node drops the
-- former token from its cache and checks open streams.
ALTER TABLE {schema}.devices ADD COLUMN token_renewed_at timestamptz;
