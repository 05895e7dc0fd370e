DROP TABLE posduif.audit;
DROP FUNCTION posduif.audit_append_only();
