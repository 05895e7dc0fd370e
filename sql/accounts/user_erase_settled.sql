-- Whether all transactions of this role that began before a time have ended: they may still write for a user who was active
-- when they looked. $1 timestamptz: the time.
SELECT NOT EXISTS (
    SELECT FROM pg_stat_activity
    WHERE datname = current_database() AND usename = current_user AND backend_type = 'client backend'
      AND pid <> pg_backend_pid() AND xact_start <= $1
) AS settled
