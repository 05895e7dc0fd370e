-- The groups of a user that have unread messages, with their number. $1 uuid: user; $2 text: the tenant's schema; $3 jsonb: the
-- memberships of each kind of group, and the values that name the user in them.
SELECT group_name, group_id, unread_count FROM {schema}.unread_in_groups($1, $2, $3)
