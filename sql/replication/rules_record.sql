-- Records the digests of the rules of each table. $1 jsonb: the digests.
INSERT INTO posduif.routing (tables) VALUES ($1)
ON CONFLICT (is_only) DO UPDATE SET tables = excluded.tables, recorded_at = now()
