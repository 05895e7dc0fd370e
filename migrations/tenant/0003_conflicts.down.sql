DROP FUNCTION {schema}.resolve_conflict(uuid, uuid, text, text, bigint);
DROP TRIGGER messages_close_conflicts_of_row ON {schema}.messages;
DROP TRIGGER messages_close_conflicts ON {schema}.messages;
DROP FUNCTION {schema}.messages_close_conflicts();
DROP INDEX {schema}.message_conflicts_message;
