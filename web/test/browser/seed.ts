import type { Engine } from './engine'

/** A device, a slot without a reader, an open conflict and a quarantined change. */
export async function seed(engine: Engine): Promise<void> {
  await engine.sql(`
    SELECT pg_create_logical_replication_slot('old_connector', 'pgoutput');
    INSERT INTO tenant_demo.devices (device_id, user_id, name, device_info, last_seen_at)
      SELECT 'phone-1', id, 'Pixel of Joe', '{"app_version": "2.4.1", "os": "Android 16"}', now()
      FROM tenant_demo.users WHERE username = 'joe';
    INSERT INTO tenant_demo.notes (owner_id, title) VALUES ('not an id', 'of no user');
  `)
  await conflict(engine)
}

/** An open conflict about a new message. */
export async function conflict(engine: Engine): Promise<void> {
  await engine.sql(`
    WITH message AS (
      INSERT INTO tenant_demo.messages (sender_id, recipient_id, content)
      SELECT j.id, b.id, 'from the server' FROM tenant_demo.users b, tenant_demo.users j
      WHERE b.username = 'bob' AND j.username = 'joe'
      RETURNING *
    )
    INSERT INTO tenant_demo.message_conflicts
      (message_id, user_id, device_id, base_version, client_version, server_version, strategy)
    SELECT id, sender_id, 'phone-1', 1,
      jsonb_build_object('op', 'update', 'content', 'from the phone'),
      jsonb_build_object('id', id, 'content', content, 'version', version), 'manual'
    FROM message;
  `)
}
