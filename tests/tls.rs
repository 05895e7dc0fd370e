//! TLS to Postgres and Redis, channel binding, and Unix sockets.

use std::net::Ipv4Addr;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use posduif::config;
use posduif::config::Secret;
use posduif::dev::{PrivatePostgres, PrivateRedis};
use posduif::engine::Role;
use posduif::net::postgres::Server;
use posduif::postgres::{Database, Statement};
use posduif::publish;
use posduif::replication::connection::Connection;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::support::office::Office;
use crate::support::servers::{self, Own};
use crate::support::{PASSWORD, World, eventually};

/// A certificate authority.
pub(crate) struct Authority {
    pub(crate) issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// A certificate for hosts and a user's name, and its key, as PEM.
    pub(crate) fn issue(&self, hosts: &[&str], user: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name.push(DnType::CommonName, user);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// A Postgres whose certificate is for `localhost`, and those who might vouch for it.
struct SecurePostgres {
    own: Own<PrivatePostgres>,
    authority: Authority,
    ca: PathBuf,
    other_ca: PathBuf,
}

impl SecurePostgres {
    async fn start() -> Self {
        let own = servers::postgres().await;
        let authority = Authority::new("the test's authority");
        let ca = own.folder().join("ca.crt");
        let other_ca = own.folder().join("other.crt");
        std::fs::write(&ca, &authority.pem).unwrap();
        std::fs::write(&other_ca, Authority::new("somebody else").pem).unwrap();
        let (certificate, key) = authority.issue(&["localhost"], "server");
        let secure = Self {
            own,
            authority,
            ca,
            other_ca,
        };
        secure.give("server.crt", &certificate);
        secure.give("server.key", &key);
        let ca = secure.authority.pem.clone();
        secure.give("clients.crt", &ca);
        secure.set("ALTER SYSTEM SET ssl_ca_file = 'clients.crt'").await;
        secure.set_tls(true).await;
        secure
    }

    /// Puts a file into the data folder, as the server's own.
    fn give(&self, name: &str, text: &str) {
        let data = self.own.folder().join("postgres/data");
        let file = data.join(name);
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let owner = std::fs::metadata(&data).unwrap();
        chown(&file, Some(owner.uid()), Some(owner.gid())).unwrap();
    }

    async fn set(&self, statement: &str) {
        let (client, connection) = tokio_postgres::connect(&self.own.server.url(), tokio_postgres::NoTls)
            .await
            .unwrap();
        tokio::spawn(connection);
        client.batch_execute(statement).await.unwrap();
        client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    }

    async fn set_tls(&self, on: bool) {
        let value = if on { "on" } else { "off" };
        self.set(&format!("ALTER SYSTEM SET ssl = {value}")).await;
        eventually("the server has taken its setting", || async {
            (sql(&self.url("localhost", "")).await.ok()? == on).then_some(())
        })
        .await;
    }

    /// Lets logins over TLS in by this method, others by password, and waits until that holds.
    async fn log_in_by(&self, method: &str) {
        let rules = format!("hostnossl all all all scram-sha-256\nhostssl all all all {method}\n");
        self.give("pg_hba.conf", &rules);
        // Rules have no version to ask for; a setting that is read with them has.
        let version = Uuid::new_v4().to_string();
        self.set(&format!("ALTER SYSTEM SET log_line_prefix = '{version} '"))
            .await;
        eventually("the server has read its rules", || async {
            let (client, connection) = tokio_postgres::connect(&self.own.server.url(), tokio_postgres::NoTls)
                .await
                .ok()?;
            tokio::spawn(connection);
            let row = client.query_one("SHOW log_line_prefix", &[]).await.ok()?;
            row.get::<_, String>(0).starts_with(&version).then_some(())
        })
        .await;
    }

    /// Its URL under a host's name.
    fn url(&self, host: &str, parameters: &str) -> String {
        let url = self.own.server.url().replace("127.0.0.1", host);
        let parameters = parameters
            .replace("{ca}", &self.ca.display().to_string())
            .replace("{other}", &self.other_ca.display().to_string());
        format!("{url}?{parameters}")
    }
}

/// Connects as the pool does; whether TLS is in use.
async fn sql(url: &str) -> Result<bool, String> {
    let settings = config::Postgres {
        url: Secret::new(url),
        connect_timeout_seconds: 2,
        ..config::Postgres::default()
    };
    let database = Database::connect(&settings)
        .await
        .map_err(|error| format!("{error:#}"))?;
    let row = database
        .query(
            &Statement::composed("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"),
            &[],
        )
        .await
        .unwrap();
    Ok(row[0].get(0))
}

/// Connects as the replicator does; whether TLS is in use.
async fn replication(url: &str) -> Result<bool, String> {
    let server = Server::parse(url).map_err(|error| format!("{error:#}"))?;
    let timeout = Duration::from_secs(2);
    let mut connection = Connection::connect(&server, timeout, timeout)
        .await
        .map_err(|error| format!("{:#}", anyhow::Error::from(error)))?;
    connection.identify_system().await.unwrap();
    // The server tells of others' encryption, so that a second session asks it.
    let (client, driver) = server.config().connect(server.clone()).await.unwrap();
    tokio::spawn(driver);
    let query = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                 WHERE application_name = 'posduif replicator'";
    let is_encrypted = client.query_one(query, &[]).await.unwrap().get(0);
    connection.close().await;
    Ok(is_encrypted)
}

/// Both ways to Postgres must end alike: encrypted or not, or refused with these words.
async fn check(url: &str, expected: Result<bool, &str>) {
    let shown = url.split_once('@').map_or("", |(_, place)| place);
    for (way, found) in [("pool", sql(url).await), ("replication", replication(url).await)] {
        match (&found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(*found, expected, "{way}: {shown}"),
            (Err(error), Err(words)) => assert!(error.contains(words), "{way}: {shown}: {error}"),
            _ => panic!("{way}: {shown}: {found:?} instead of {expected:?}"),
        }
    }
}

#[tokio::test]
async fn sslmode_sets_what_postgres_must_prove() {
    let postgres = SecurePostgres::start().await;
    let unknown = Err("invalid peer certificate: UnknownIssuer; configure a file with the authority");
    for (host, parameters, expected) in [
        ("localhost", "", Ok(true)),
        ("localhost", "sslmode=prefer", Ok(true)),
        ("localhost", "sslmode=disable", Ok(false)),
        ("localhost", "sslmode=require", Ok(true)),
        ("localhost", "sslmode=require&sslrootcert={ca}", Ok(true)),
        ("localhost", "sslmode=require&sslrootcert={other}", unknown),
        ("localhost", "sslmode=verify-ca&sslrootcert={ca}", Ok(true)),
        ("127.0.0.1", "sslmode=verify-ca&sslrootcert={ca}", Ok(true)),
        ("localhost", "sslmode=verify-ca&sslrootcert={other}", unknown),
        ("localhost", "sslmode=verify-full&sslrootcert={ca}", Ok(true)),
        (
            "127.0.0.1",
            "sslmode=verify-full&sslrootcert={ca}",
            Err("connect by a name in its subjectAltName"),
        ),
        ("localhost", "sslmode=verify-full&sslrootcert={other}", unknown),
    ] {
        check(&postgres.url(host, parameters), expected).await;
    }
    postgres.set_tls(false).await;
    for (parameters, expected) in [
        ("", Ok(false)),
        ("sslmode=disable", Ok(false)),
        ("sslmode=require", Err("TLS")),
        ("sslmode=verify-ca&sslrootcert={ca}", Err("TLS")),
        ("sslmode=verify-full&sslrootcert={ca}", Err("TLS")),
    ] {
        check(&postgres.url("localhost", parameters), expected).await;
    }
}

#[tokio::test]
async fn channel_binding_is_used_where_required() {
    let postgres = SecurePostgres::start().await;
    let full = "sslmode=verify-full&sslrootcert={ca}";
    postgres.log_in_by("scram-sha-256").await;
    for binding in ["disable", "prefer", "require"] {
        let url = postgres.url("localhost", &format!("{full}&channel_binding={binding}"));
        check(&url, Ok(true)).await;
    }
    let url = postgres.url("localhost", "sslmode=disable&channel_binding=require");
    check(&url, Err("channel")).await;
}

#[tokio::test]
async fn server_without_authentication_is_refused_where_binding_is_required() {
    let postgres = SecurePostgres::start().await;
    for method in ["trust", "password"] {
        postgres.log_in_by(method).await;
        check(&postgres.url("localhost", "sslmode=require"), Ok(true)).await;
        let url = postgres.url("localhost", "sslmode=require&channel_binding=require");
        check(&url, Err("channel")).await;
    }
}

#[tokio::test]
async fn client_certificate_logs_in_to_postgres() {
    let postgres = SecurePostgres::start().await;
    let folder = postgres.own.folder();
    for (name, user) in [("ours", "posduif"), ("others", "somebody")] {
        let (certificate, key) = postgres.authority.issue(&[], user);
        std::fs::write(folder.join(format!("{name}.crt")), certificate).unwrap();
        std::fs::write(folder.join(format!("{name}.key")), key).unwrap();
    }
    postgres.log_in_by("cert").await;
    let with = |name: &str| {
        let file = folder.join(name).display().to_string();
        let parameters = format!("sslmode=verify-full&sslrootcert={{ca}}&sslcert={file}.crt&sslkey={file}.key");
        postgres.url("localhost", &parameters)
    };
    check(&with("ours"), Ok(true)).await;
    check(&with("others"), Err("certificate authentication failed")).await;
    let without = postgres.url("localhost", "sslmode=require");
    check(&without, Err("certificate")).await;
}

/// Somebody between us and Postgres, who answers the question for TLS; gives what came after it.
async fn in_between(answer: &'static [u8]) -> (String, JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("postgres://u:hush@{}/d", listener.local_addr().unwrap());
    let heard = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut question = [0_u8; 8];
        stream.read_exact(&mut question).await.unwrap();
        assert_eq!(question, [0, 0, 0, 8, 4, 210, 22, 47]);
        stream.write_all(answer).await.unwrap();
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard).await;
        heard
    });
    (url, heard)
}

#[tokio::test]
async fn server_without_tls_receives_no_credentials() {
    for is_replication in [false, true] {
        let (url, heard) = in_between(b"N").await;
        let url = format!("{url}?sslmode=require");
        let found = if is_replication {
            replication(&url).await
        } else {
            sql(&url).await
        };
        let error = found.unwrap_err();
        assert!(error.contains("TLS") && !error.contains("hush"), "{error}");
        assert!(heard.await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn plaintext_bytes_after_tls_response_are_refused() {
    // CVE-2021-23222: an authentication request that never came over TLS.
    const INJECTED: &[u8] = b"SR\0\0\0\x08\0\0\0\x03";
    for mode in ["prefer", "require"] {
        let (url, heard) = in_between(INJECTED).await;
        let error = replication(&format!("{url}?sslmode={mode}")).await.unwrap_err();
        assert!(error.contains("unencrypted bytes follow the response"), "{error}");
        assert!(heard.await.unwrap().is_empty());

        let (url, heard) = in_between(INJECTED).await;
        sql(&format!("{url}?sslmode={mode}")).await.unwrap_err();
        let heard = String::from_utf8_lossy(&heard.await.unwrap()).into_owned();
        assert!(!heard.contains("hush"), "{heard}");
    }
}

#[tokio::test]
async fn silent_server_times_out() {
    for answer in [b"".as_slice(), b"S"] {
        let (url, heard) = in_between(answer).await;
        let error = replication(&format!("{url}?sslmode=require")).await.unwrap_err();
        assert!(error.contains("did not complete the login within 2 s"), "{error}");
        heard.await.unwrap();
        let (url, heard) = in_between(answer).await;
        sql(&format!("{url}?sslmode=require")).await.unwrap_err();
        heard.await.unwrap();
    }
}

/// A Redis with TLS, and the user that docs/operations.md names.
struct SecureRedis {
    own: Own<PrivateRedis>,
    port: u16,
    other_ca: PathBuf,
}

impl SecureRedis {
    /// Its certificate is for `localhost`; the user's keys begin with `prefix`.
    async fn start(prefix: &str, clients: &str) -> Self {
        let port = free_port();
        let own = servers::redis_with(|folder, options| {
            let authority = Authority::new("the test's authority");
            let (certificate, key) = authority.issue(&["localhost"], "server");
            let (ours, our_key) = authority.issue(&[], "posduif");
            for (name, text) in [
                ("ca.crt", &authority.pem),
                ("other.crt", &Authority::new("somebody else").pem),
                ("server.crt", &certificate),
                ("server.key", &key),
                ("ours.crt", &ours),
                ("ours.key", &our_key),
            ] {
                std::fs::write(folder.join(name), text).unwrap();
            }
            let file = |name: &str| folder.join(name).display().to_string();
            options
                .setting("tls-port", &port.to_string())
                .setting("tls-cert-file", &file("server.crt"))
                .setting("tls-key-file", &file("server.key"))
                .setting("tls-ca-cert-file", &file("ca.crt"))
                .setting("tls-auth-clients", clients)
                .setting("user", &documented_user(prefix))
        })
        .await;
        let other_ca = own.folder().join("other.crt");
        Self { own, port, other_ca }
    }

    fn settings(&self, prefix: &str) -> config::Redis {
        config::Redis {
            url: Secret::new(format!("rediss://posduif:secret@localhost:{}/0", self.port)),
            ca_file: self.own.folder().join("ca.crt").display().to_string(),
            prefix: prefix.to_owned(),
            response_timeout_seconds: 2,
            ..config::Redis::default()
        }
    }
}

fn free_port() -> u16 {
    // Below the ports of outgoing connections, as the private servers' own.
    posduif::dev::RedisOptions::new().unwrap().port
}

/// The rights that the documentation says suffice, of the user `posduif` with the password `secret`.
fn documented_user(prefix: &str) -> String {
    let line = include_str!("../docs/operations.md")
        .lines()
        .find_map(|line| line.strip_prefix("user posduif "))
        .unwrap();
    assert!(line.contains(">PASSWORD ~posduif:*"), "{line}");
    let rights = line
        .replace(">PASSWORD", ">secret")
        .replace("~posduif:*", &format!("~{prefix}:*"))
        .replace("&posduif:*", &format!("&{prefix}:*"));
    format!("posduif {rights}")
}

/// Connects as the publisher and as the `redis` crate do.
async fn reach_redis(settings: &config::Redis) -> [Result<(), String>; 2] {
    let own = publish::connection::Connection::connect(settings, 100).await;
    let theirs = async {
        let client = posduif::net::redis::client(settings)?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        redis::cmd("PING").query_async::<()>(&mut connection).await
    };
    [
        own.map(|_| ()).map_err(|error| format!("{error:#}")),
        theirs.await.map_err(|error| error.to_string()),
    ]
}

/// Packages of Valkey may be built without TLS.
fn is_redis_without_tls() -> bool {
    let is_left_out = std::env::var("POSDUIF_REDIS_TLS").is_ok_and(|value| value == "none");
    if is_left_out {
        eprintln!("left out, since POSDUIF_REDIS_TLS is none");
    }
    is_left_out
}

#[tokio::test]
async fn redis_certificate_is_verified() {
    if is_redis_without_tls() {
        return;
    }
    let redis = SecureRedis::start("posduif", "no").await;
    let good = redis.settings("posduif");
    assert_eq!(reach_redis(&good).await, [Ok(()), Ok(())]);

    let mut wrong_authority = good.clone();
    wrong_authority.ca_file = redis.other_ca.display().to_string();
    for found in reach_redis(&wrong_authority).await {
        assert!(found.unwrap_err().contains("UnknownIssuer"));
    }
    let at = |change: &dyn Fn(&str) -> String| config::Redis {
        url: Secret::new(change(good.url.expose())),
        ..good.clone()
    };
    for found in reach_redis(&at(&|url| url.replace("localhost", "127.0.0.1"))).await {
        assert!(found.unwrap_err().contains("not valid for name"));
    }
    let trusting = at(&|url| format!("{}#insecure", url.replace("localhost", "127.0.0.1")));
    assert_eq!(reach_redis(&trusting).await, [Ok(()), Ok(())]);
    // A port without TLS.
    let plain = at(&|url| url.replace(&redis.port.to_string(), &redis.own.server.port().to_string()));
    for found in reach_redis(&plain).await {
        found.unwrap_err();
    }
    let mut lost = good.clone();
    lost.ca_file = "/no/such/file".into();
    for found in reach_redis(&lost).await {
        let error = found.unwrap_err();
        assert!(
            error.contains("redis.ca_file") && error.contains("/no/such/file"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn redis_client_certificate_is_sent() {
    if is_redis_without_tls() {
        return;
    }
    let redis = SecureRedis::start("posduif", "yes").await;
    let mut settings = redis.settings("posduif");
    for found in reach_redis(&settings).await {
        found.unwrap_err();
    }
    settings.cert_file = redis.own.folder().join("ours.crt").display().to_string();
    settings.key_file = redis.own.folder().join("ours.key").display().to_string();
    assert_eq!(reach_redis(&settings).await, [Ok(()), Ok(())]);
}

#[tokio::test]
async fn refused_redis_login_is_reported() {
    let redis = servers::redis().await;
    let url = redis.server.url();
    let (_, place) = url.rsplit_once('@').unwrap();
    for user in ["default", "nobody"] {
        let settings = config::Redis {
            url: Secret::new(format!("redis://{user}:hush@{place}")),
            ..config::Redis::default()
        };
        let [own, theirs] = reach_redis(&settings).await;
        let error = own.unwrap_err();
        assert!(
            error.contains(&format!("refuses the login of user {user}")) && error.contains("WRONGPASS"),
            "{error}"
        );
        assert!(!error.contains("hush"), "{error}");
        theirs.unwrap_err();
    }
    // A password of the default user does not stand for another user's.
    let settings = config::Redis {
        url: Secret::new(url.replace("default:", "nobody:")),
        ..config::Redis::default()
    };
    for found in reach_redis(&settings).await {
        found.unwrap_err();
    }
}

/// A message goes through the log and Redis to a phone and to the stream of all changes.
async fn a_row_gets_through(world: World) {
    let office = Office::within(world, |_| {}).await;
    office.ready().await;
    let phone = office.phone("phone-1").await;
    let id = office.send("by every road").await;
    office.world.published().await;
    let changes = office.world.stream(&office.world.keys().changes("acme")).await;
    assert!(
        changes
            .iter()
            .any(|entry| entry.field("row_id") == id || format!("{entry:?}").contains(&id))
    );
    let batch = phone.get("/api/sync/incoming").await.expect(200);
    assert!(batch.to_string().contains("by every road"), "{batch}");
    // Sessions and limits have commands of their own.
    let log_in = |password: &str| json!({"username": "bob", "password": password});
    let bob = office
        .anybody
        .post("/api/auth/login", &log_in(PASSWORD))
        .await
        .expect(200);
    office
        .anybody
        .post("/api/auth/login", &log_in("a guess"))
        .await
        .expect(401);
    let token = json!({"refresh_token": bob["refresh_token"]});
    office.anybody.post("/api/auth/refresh", &token).await.expect(200);
    assert_eq!(office.bob.delete("/api/auth/sessions").await.status, 204);
    let left = office.bob.get("/api/auth/sessions").await.expect(200);
    assert_eq!(left["sessions"].as_array().unwrap().len(), 1);
    office.anybody.post("/api/auth/refresh", &token).await.expect(401);
    office.close().await;
}

#[tokio::test]
async fn engine_works_over_tls_to_both_servers() {
    if is_redis_without_tls() {
        return;
    }
    let postgres = SecurePostgres::start().await;
    postgres.log_in_by("scram-sha-256").await;
    let query = "sslmode=verify-full&sslrootcert={ca}&channel_binding=require";
    let mut world = World::on(&postgres.url("localhost", query), "redis://unused").await;
    let prefix = world.config.redis.prefix.clone();
    let redis = SecureRedis::start(&prefix, "no").await;
    world.config.redis = redis.settings(&prefix);
    a_row_gets_through(world).await;
}

#[tokio::test]
async fn engine_works_over_unix_sockets_to_both_servers() {
    let postgres = servers::postgres_with(|folder, options| {
        let sockets = open_folder(folder);
        options.setting("unix_socket_directories", &sockets.display().to_string())
    })
    .await;
    let redis = servers::redis_with(|folder, options| {
        let socket = folder.join("redis.sock").display().to_string();
        options
            .setting("unixsocket", &socket)
            .setting("user", "ann on >p%40ss ~* &* +@all")
    })
    .await;
    let sockets = postgres.folder().join("sockets").display().to_string();
    let host = sockets.replace('/', "%2F");
    let database_url = postgres.server.url().replace("127.0.0.1", &host);
    let socket = redis.folder().join("redis.sock");
    for scheme in ["unix", "redis+unix"] {
        let redis_url = format!("{scheme}://{}?user=ann&pass=p%2540ss", socket.display());
        a_row_gets_through(World::on(&database_url, &redis_url).await).await;
    }
    // The folder as a parameter, as libpq writes it; sslmode says nothing about sockets.
    let (login, place) = database_url.split_once('@').unwrap();
    let (_, port_and_name) = place.split_once(':').unwrap();
    let (port, name) = port_and_name.split_once('/').unwrap();
    let url = format!("{login}@/{name}?host={host}&port={port}&sslmode=require");
    assert_eq!((sql(&url).await, replication(&url).await), (Ok(false), Ok(false)));
}

/// A folder in which the server's user can make its socket.
fn open_folder(folder: &Path) -> PathBuf {
    let sockets = folder.join("sockets");
    std::fs::create_dir(&sockets).unwrap();
    std::fs::set_permissions(&sockets, std::fs::Permissions::from_mode(0o777)).unwrap();
    sockets
}

/// More than a socket takes at once, in both directions: nothing may be left behind in TLS's own buffers.
#[tokio::test]
async fn large_rows_pass_through_tls() {
    if is_redis_without_tls() {
        return;
    }
    let postgres = SecurePostgres::start().await;
    let query = "sslmode=verify-full&sslrootcert={ca}";
    let mut world = World::on(&postgres.url("localhost", query), "redis://unused").await;
    let prefix = world.config.redis.prefix.clone();
    let redis = SecureRedis::start(&prefix, "no").await;
    world.config.redis = redis.settings(&prefix);
    let stage = crate::support::stage::Stage::on_with(world, Role::Replicator).await;
    stage
        .sql(&format!(
            "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content) \
             SELECT '{}', '{}', repeat(n::text, 1000000) FROM generate_series(1, 9) n",
            stage.bob, stage.joe
        ))
        .await;
    let inbox = stage.inbox(stage.joe).await;
    let large = inbox
        .iter()
        .filter(|entry| format!("{entry:?}").len() > 1_000_000)
        .count();
    assert_eq!(large, 9);
    stage.stop().await;
}
