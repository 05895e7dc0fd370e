-- The rules by which the engine that holds the slot routes: devices that took their snapshot by others may hold other rows than
-- these show.
CREATE TABLE posduif.routing (
    -- There is one row at most.
    is_only     boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    -- A digest of the rules and groups of each table, by its name, with its schema unless that is the tenant's.
    tables      jsonb NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now()
);
