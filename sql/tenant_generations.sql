-- All tenants with their generation and state.
SELECT name, generation, state FROM posduif.tenants ORDER BY name
