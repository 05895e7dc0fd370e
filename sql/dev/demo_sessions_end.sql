-- Ends the sessions of the demo's SQL box that have run for longer than allowed: a statement may catch its cancellation.
SELECT pg_terminate_backend(pid)
FROM pg_stat_activity
WHERE usename = 'posduif_demo' AND backend_start < clock_timestamp() - make_interval(secs => $1)
