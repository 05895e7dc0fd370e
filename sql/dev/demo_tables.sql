-- Creates the tables of the demo, as docs/own-tables.md describes them, unless they exist.
CREATE TABLE IF NOT EXISTS {schema}.lists (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name       text NOT NULL CHECK (name <> ''),
    version    bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz
);
CREATE TABLE IF NOT EXISTS {schema}.list_members (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    list_id    uuid NOT NULL REFERENCES {schema}.lists ON DELETE CASCADE,
    user_id    uuid NOT NULL REFERENCES {schema}.users ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (list_id, user_id)
);
CREATE TABLE IF NOT EXISTS {schema}.tasks (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    list_id    uuid NOT NULL REFERENCES {schema}.lists ON DELETE CASCADE,
    title      text NOT NULL CHECK (title <> ''),
    done       boolean NOT NULL DEFAULT false,
    note       text,
    version    bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz
);
CREATE INDEX IF NOT EXISTS list_members_user ON {schema}.list_members (user_id);
CREATE INDEX IF NOT EXISTS tasks_list ON {schema}.tasks (list_id);

-- Any writer makes a new version; an upload has counted it already.
CREATE OR REPLACE FUNCTION {schema}.demo_new_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.version = OLD.version THEN
        NEW.version := OLD.version + 1;
    END IF;
    NEW.updated_at := now();
    RETURN NEW;
END
$$;
CREATE OR REPLACE TRIGGER demo_new_version BEFORE UPDATE ON {schema}.lists
    FOR EACH ROW EXECUTE FUNCTION {schema}.demo_new_version();
CREATE OR REPLACE TRIGGER demo_new_version BEFORE UPDATE ON {schema}.tasks
    FOR EACH ROW EXECUTE FUNCTION {schema}.demo_new_version();
