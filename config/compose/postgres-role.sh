#!/bin/bash
# Creates the role and the database of the engine when the data folder is empty: the image of Postgres runs it as the
# superuser. The role is no superuser: it may replicate, and owns its database and nothing else.
set -euo pipefail

export POSDUIF_PASSWORD_FILE=${POSDUIF_PASSWORD_FILE:?}

# psql reads the file, so that the password is on no command line.
psql -v ON_ERROR_STOP=1 -v role="${POSDUIF_ROLE:-posduif}" -v database="${POSDUIF_DATABASE:-posduif}" --no-psqlrc --quiet \
    --username "${POSTGRES_USER:-postgres}" --dbname "${POSTGRES_DB:-postgres}" <<'SQL'
\set password `cat "$POSDUIF_PASSWORD_FILE"`
CREATE ROLE :"role" LOGIN REPLICATION NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'password';
CREATE DATABASE :"database" OWNER :"role";
REVOKE CONNECT, TEMPORARY ON DATABASE :"database" FROM PUBLIC;
SQL
