-- Records a table's state in the catalogs. $1 text: tenant; $2 oid: table; $3 text: name; $4 text: root; $5 oid: parent;
-- $6 oid: file; $7 text: identity; $8 boolean: published; $9 text[]: columns; $10 boolean: covered.
INSERT INTO posduif.tables (tenant, relation, name, root, parent, filenode, identity, is_published, columns, is_covered,
                            is_present)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, true)
ON CONFLICT (tenant, relation) DO UPDATE
SET name = EXCLUDED.name, root = EXCLUDED.root, parent = EXCLUDED.parent, filenode = EXCLUDED.filenode,
    identity = EXCLUDED.identity, is_published = EXCLUDED.is_published, columns = EXCLUDED.columns,
    is_covered = EXCLUDED.is_covered, is_present = true
