-- Registers a tenant unless it exists. $1 text: name; $2 text: schema.
INSERT INTO posduif.tenants (name, schema_name) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING
