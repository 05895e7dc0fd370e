-- The tenants of a lane whose schema exists, with their generation and state. $1 text: lane.
SELECT name, generation, state FROM posduif.tenants
WHERE lane = $1 AND EXISTS (SELECT FROM pg_namespace WHERE nspname = schema_name) ORDER BY name
