DROP TRIGGER users_withdraw_enrollments ON {schema}.users;
DROP FUNCTION {schema}.users_withdraw_enrollments();
DROP INDEX {schema}.enrollments_open;
ALTER TABLE {schema}.users DROP COLUMN role;
