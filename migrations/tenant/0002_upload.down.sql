DROP FUNCTION {schema}.upload_messages(uuid, text, text, uuid[], text[], uuid[], text[], bigint[], timestamptz[]);
DROP FUNCTION {schema}.message_json({schema}.messages);
