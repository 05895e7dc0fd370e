-- Uploads with sequence numbers: what became of each item, so that a repeated item gets its first answer.

CREATE TABLE posduif.upload_devices (
    tenant    text NOT NULL REFERENCES posduif.tenants ON DELETE CASCADE,
    device_id text NOT NULL,
    -- The highest sequence number that was processed.
    last_seq  bigint NOT NULL DEFAULT 0 CHECK (last_seq >= 0),
    -- Up to here the device has stored its results.
    acked_seq bigint NOT NULL DEFAULT 0 CHECK (acked_seq >= 0),
    PRIMARY KEY (tenant, device_id)
);

-- One row for each upload: the results of consecutive items, without the server's rows. Old rows are removed as the device
-- acknowledges; see upload_items() in the tenants' schemas.
CREATE TABLE posduif.upload_results (
    tenant    text NOT NULL,
    device_id text NOT NULL,
    first_seq bigint NOT NULL CHECK (first_seq > 0),
    last_seq  bigint NOT NULL,
    -- SHA-256 of each item; an item that comes again with another content shows a restored device.
    digests   bytea[] NOT NULL,
    results   jsonb[] NOT NULL,
    PRIMARY KEY (tenant, device_id, first_seq),
    FOREIGN KEY (tenant, device_id) REFERENCES posduif.upload_devices ON DELETE CASCADE,
    CHECK (last_seq - first_seq + 1 = cardinality(digests) AND cardinality(digests) = cardinality(results))
);
