-- Records the state in the catalogs of a table outside of tenants' schemas. $1 oid: table; $2 text: schema; $3 text: name;
-- $4 text: schema of the root; $5 text: root; $6 oid: parent; $7 oid: file; $8 text: identity; $9 boolean: published;
-- $10 text[]: columns; $11 boolean: covered.
INSERT INTO posduif.outside_tables (relation, schema_name, name, root_schema, root, parent, filenode, identity, is_published,
                                    columns, is_covered, is_present)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, true)
ON CONFLICT (relation) DO UPDATE
SET schema_name = EXCLUDED.schema_name, name = EXCLUDED.name, root_schema = EXCLUDED.root_schema, root = EXCLUDED.root,
    parent = EXCLUDED.parent, filenode = EXCLUDED.filenode, identity = EXCLUDED.identity,
    is_published = EXCLUDED.is_published, columns = EXCLUDED.columns, is_covered = EXCLUDED.is_covered, is_present = true
