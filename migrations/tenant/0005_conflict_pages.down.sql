DROP INDEX {schema}.message_conflicts_user;
