DROP TRIGGER message_conflicts_bound ON {schema}.message_conflicts;
DROP FUNCTION {schema}.message_conflicts_bound();
DROP INDEX {schema}.message_conflicts_of_row;
DROP INDEX {schema}.message_conflicts_of_message;
