DROP TABLE {schema}.encrypted_states;
DROP TABLE {schema}.sync_metadata;
DROP TABLE {schema}.enrollments;
DROP TABLE {schema}.message_conflicts;
DROP TABLE {schema}.messages;
DROP FUNCTION {schema}.messages_new_version();
DROP TABLE {schema}.devices;
DROP TABLE {schema}.users;
