-- Those of these ids that no user of a tenant has. $1 uuid[]: ids.
SELECT wanted.id FROM unnest($1) AS wanted (id) WHERE NOT EXISTS (SELECT FROM {schema}.users u WHERE u.id = wanted.id)
