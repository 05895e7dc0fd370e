-- What exists and what this role may do. $1 text: publication.
-- Publishing whole schemas and making event triggers both need a superuser; the former also Postgres 15.
SELECT EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = $1) AS publication_exists,
       EXISTS (SELECT FROM pg_catalog.pg_event_trigger WHERE evtname = 'posduif_full_identity') AS trigger_exists,
       (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)
           AND current_setting('server_version_num')::int >= 150000 AS whole_schemas
