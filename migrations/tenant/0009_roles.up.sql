-- Roles of users: members manage their own devices, admins everybody's. Enrollments end with their creator.

ALTER TABLE {schema}.users ADD COLUMN role text NOT NULL DEFAULT 'member' CHECK (role IN ('member', 'admin'));

-- Lists of open enrollments, and their removal below.
CREATE INDEX enrollments_open ON {schema}.enrollments (created_by) WHERE used_at IS NULL;

-- A user who may not act has no open enrollments, by whichever path the user was disabled or deleted. With the rights of
-- the owner: a client that may update users need not have any on enrollments.
CREATE FUNCTION {schema}.users_withdraw_enrollments() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM {schema}.enrollments WHERE created_by = NEW.id AND used_at IS NULL;
    RETURN NULL;
END
$$;
CREATE TRIGGER users_withdraw_enrollments AFTER UPDATE OF disabled_at, deleted_at ON {schema}.users
    FOR EACH ROW WHEN (NEW.disabled_at IS NOT NULL OR NEW.deleted_at IS NOT NULL)
    EXECUTE FUNCTION {schema}.users_withdraw_enrollments();
