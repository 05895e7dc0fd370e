DROP TABLE posduif.epochs;
DROP TABLE posduif.enrollment_tokens;
DROP TABLE posduif.devices;
DROP TABLE posduif.credentials;
DROP TABLE posduif.tenants;
