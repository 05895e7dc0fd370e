-- The tenants that are not in the main lane, with their lane. $1 text: the main lane.
SELECT name, lane FROM posduif.tenants WHERE lane <> $1
