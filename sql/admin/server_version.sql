-- Which Postgres this is.
SELECT current_setting('server_version') AS version
