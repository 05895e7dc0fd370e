DROP INDEX {schema}.messages_recipient, {schema}.messages_sender;
CREATE INDEX messages_recipient ON {schema}.messages (recipient_id, created_at, id);
CREATE INDEX messages_sender ON {schema}.messages (sender_id, created_at, id);
