ALTER TABLE posduif.tenants DROP COLUMN lane;
