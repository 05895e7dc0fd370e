-- Records of a recorded table outside of tenants' schemas that it lacked its publication or its replica identity. The rest stays
-- as it was recorded, so that the next examination finds each change. $1 text: table, qualified and quoted; $2 text: identity;
-- $3 boolean: whether the publication names it.
UPDATE posduif.outside_tables
SET identity = $2, is_published = is_published AND $3, is_covered = false
WHERE relation = to_regclass($1)
  AND (identity, is_published, is_covered) IS DISTINCT FROM ($2, is_published AND $3, false)
