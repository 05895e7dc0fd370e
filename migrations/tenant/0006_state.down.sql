DROP TRIGGER devices_public_key_changed ON {schema}.devices;
DROP FUNCTION {schema}.devices_public_key_changed();
ALTER TABLE {schema}.devices DROP COLUMN public_key_changed_at;
DROP FUNCTION {schema}.write_states(uuid, text, text[], bytea[], bytea[], text[], bigint);
DROP TRIGGER states_new_version ON {schema}.encrypted_states;
DROP FUNCTION {schema}.states_new_version();
ALTER TABLE {schema}.encrypted_states DROP COLUMN creation;
ALTER TABLE {schema}.users DROP COLUMN state_floor;
