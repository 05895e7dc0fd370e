-- The benchmark's table: five columns, about 200 bytes a row.
CREATE TABLE tenant_bench.events (
    id       bigint NOT NULL,
    user_id  uuid NOT NULL,
    kind     text NOT NULL,
    at       timestamptz NOT NULL,
    body     text NOT NULL
);

CREATE FUNCTION tenant_bench.user_id(number bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT ('00000000-0000-4000-8000-' || lpad(to_hex(number), 12, '0'))::uuid
$$;

-- One row; its user changes from row to row as if at random.
CREATE FUNCTION tenant_bench.make(id bigint) RETURNS SETOF tenant_bench.events LANGUAGE sql STABLE AS $$
    SELECT id, tenant_bench.user_id(1 + id * 7919 % 10000), 'created', now(), repeat(md5(id::text), 4)
$$;

-- Each has a device, without which a user has no inbox.
CREATE PROCEDURE tenant_bench.add_users(count bigint) LANGUAGE sql AS $$
    INSERT INTO tenant_bench.users (id, username, user_type)
    SELECT tenant_bench.user_id(number), 'user' || number, 'mobile' FROM generate_series(1, count) number;
    INSERT INTO tenant_bench.devices (device_id, user_id)
    SELECT 'device' || number, tenant_bench.user_id(number) FROM generate_series(1, count) number
$$;

CREATE PROCEDURE tenant_bench.write(first bigint, last bigint, per_transaction bigint) LANGUAGE plpgsql AS $$
BEGIN
    FOR start IN first..last BY per_transaction LOOP
        PERFORM set_config('synchronous_commit', 'off', true);
        INSERT INTO tenant_bench.events
        SELECT made.* FROM generate_series(start, start + per_transaction - 1) number, tenant_bench.make(number) made;
        COMMIT;
    END LOOP;
END
$$;
