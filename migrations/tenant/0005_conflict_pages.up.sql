-- Conflicts are paged by (created_at, id), resolved ones too.

CREATE INDEX message_conflicts_user ON {schema}.message_conflicts (user_id, created_at, id);
