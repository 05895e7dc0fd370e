ALTER TABLE posduif.credentials DROP COLUMN email_stamp, DROP COLUMN unverified_email;
