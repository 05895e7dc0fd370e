ALTER TABLE posduif.credentials DROP COLUMN email_stamp;
ALTER TABLE posduif.credentials DROP COLUMN unverified_email;
