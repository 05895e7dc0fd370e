DROP FUNCTION {schema}.upload_rows(uuid, text, jsonb);
