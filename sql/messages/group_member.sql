-- Whether a user is a member of a group. $1 text: the tenant's schema; $2 jsonb: the memberships of the kind of group, and the
-- values that name the user in them; $3 text: id of the group.
SELECT coalesce({schema}.is_member($1, $2, $3), false) AS is_member
