ALTER TABLE posduif.devices DROP COLUMN auth_key;
