-- Those of some usernames that no user of the tenant has or had, in the given order. $1 text[]: usernames.
SELECT wanted.username
FROM unnest($1::text[]) WITH ORDINALITY AS wanted (username, place)
WHERE NOT EXISTS (SELECT FROM {schema}.users WHERE lower(users.username) = lower(wanted.username))
ORDER BY wanted.place
