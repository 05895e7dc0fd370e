//! An owner of a world's database that is no superuser, as on managed servers.

use posduif::config::Secret;

use super::World;

pub(crate) struct Owner {
    role: String,
    /// A superuser.
    pub(crate) admin: tokio_postgres::Client,
}

impl Owner {
    /// Makes it the role of the world's configuration.
    pub(crate) async fn of(world: &mut World) -> Self {
        let name = world.config.redis.prefix.clone();
        let role = format!("{name}_role");
        let admin = world.psql().await;
        let make =
            format!("CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'secret'; ALTER DATABASE {name} OWNER TO {role};");
        admin.batch_execute(&make).await.unwrap();
        let url = world.config.postgres.url.expose().to_owned();
        let (_, place) = url.rsplit_once('@').unwrap();
        world.config.postgres.url = Secret::new(format!("postgres://{role}:secret@{place}"));
        Self { role, admin }
    }

    /// Removes the role: roles belong to the whole server, so this one must not stay behind.
    pub(crate) async fn remove(self) {
        let role = &self.role;
        let clean = format!("REASSIGN OWNED BY {role} TO CURRENT_USER; DROP OWNED BY {role}; DROP ROLE {role};");
        self.admin.batch_execute(&clean).await.unwrap();
    }
}
