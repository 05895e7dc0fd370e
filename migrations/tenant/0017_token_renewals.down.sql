ALTER TABLE {schema}.devices DROP COLUMN token_renewed_at;
