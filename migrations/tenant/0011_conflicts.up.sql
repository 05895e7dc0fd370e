-- Any role that may delete a message closes its conflicts: they have rights of their own.
ALTER FUNCTION {schema}.messages_close_conflicts() SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
