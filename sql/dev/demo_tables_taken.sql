-- Tables of tenants that have the name of a table of the demo and lack one of its columns. Rules apply to all tenants.
SELECT DISTINCT schema.nspname, wanted.name
FROM (VALUES ('lists', 'id'), ('lists', 'name'), ('lists', 'version'), ('lists', 'updated_at'), ('lists', 'deleted_at'),
             ('list_members', 'list_id'), ('list_members', 'user_id'),
             ('tasks', 'id'), ('tasks', 'list_id'), ('tasks', 'title'), ('tasks', 'done'), ('tasks', 'note'),
             ('tasks', 'version'), ('tasks', 'created_at'), ('tasks', 'updated_at'), ('tasks', 'deleted_at')
     ) AS wanted (name, attribute)
JOIN pg_namespace schema ON schema.nspname LIKE 'tenant\_%'
JOIN pg_class class ON class.relname = wanted.name AND class.relnamespace = schema.oid
WHERE NOT EXISTS (
    SELECT FROM pg_attribute attribute
    WHERE attribute.attrelid = class.oid AND attribute.attname = wanted.attribute AND NOT attribute.attisdropped
)
ORDER BY schema.nspname, wanted.name
