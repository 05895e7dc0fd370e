-- Lists are counted, and their far pages found, by the index alone. The other party and deleted_at are along for that; no
-- statement that changes only a message's status or synced_at has more to do for them.

CREATE INDEX messages_recipient_new ON {schema}.messages (recipient_id, created_at, id) INCLUDE (sender_id, deleted_at);
CREATE INDEX messages_sender_new ON {schema}.messages (sender_id, created_at, id) INCLUDE (recipient_id, deleted_at);
DROP INDEX {schema}.messages_recipient, {schema}.messages_sender;
ALTER INDEX {schema}.messages_recipient_new RENAME TO messages_recipient;
ALTER INDEX {schema}.messages_sender_new RENAME TO messages_sender;
