-- Whether a user reads the mails to the address of the account. An address that an operator or a provider has given counts as
-- verified; one that a registration has given does not until a mail has verified it.
ALTER TABLE posduif.credentials
    -- The address that no mail has verified. While it is the user's, no mail for another password is sent to it.
    ADD COLUMN unverified_email text,
    -- Tokens of mails to verify an address carry it: a verification and a new password change it.
    ADD COLUMN email_stamp uuid NOT NULL DEFAULT gen_random_uuid();
