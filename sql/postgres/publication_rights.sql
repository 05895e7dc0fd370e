-- Existing objects and the privileges of this role. $1 text: publication.
-- Publishing whole schemas and creating event triggers require a superuser; the former also Postgres 15.
-- Postgres 18 publishes generated columns; pg_publication has a column for that, which earlier releases lack.
SELECT EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = $1) AS publication_exists,
       EXISTS (SELECT FROM pg_catalog.pg_event_trigger WHERE evtname = 'posduif_full_identity') AS trigger_exists,
       (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)
           AND current_setting('server_version_num')::int >= 150000 AS whole_schemas,
       current_setting('server_version_num')::int >= 180000 AS knows_generated,
       coalesce((SELECT to_jsonb(publication) ->> 'pubgencols' = 's'
                 FROM pg_catalog.pg_publication publication WHERE pubname = $1), false) AS publishes_generated,
       to_regclass('posduif.commands') IS NOT NULL AND NOT EXISTS (
           SELECT
           FROM pg_catalog.pg_publication publication
           LEFT JOIN pg_catalog.pg_publication_rel entry ON entry.prpubid = publication.oid
           WHERE publication.pubname = $1
             AND (publication.puballtables OR entry.prrelid = to_regclass('posduif.commands'))
       ) AS lacks_commands
