DROP TABLE {schema}.outbox;
DROP FUNCTION {schema}.outbox_clear();
