-- The server's version as a number: 150018 is 15.18.
SELECT current_setting('server_version_num')::int AS version
