ALTER FUNCTION {schema}.messages_close_conflicts() SECURITY INVOKER RESET search_path;
