//! Files shipped beside the program: the image, the compose file, the chart, the systemd unit, and notifications to systemd.
//! What the chart renders is checked by scripts/chart, which needs Helm.

use std::collections::BTreeSet;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use posduif::config::{Config, Secret};
use posduif::engine::Role;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::folder::Folder;
use crate::support::{TIMEOUT, World, connect, eventually, servers};

const DOCKERFILE: &str = include_str!("../Dockerfile");
const COMPOSE: &str = include_str!("../docker-compose.yml");
const UNIT: &str = include_str!("../config/posduif.service");
const CHART: &str = include_str!("../deploy/helm/posduif/Chart.yaml");
const CHART_HELPERS: &str = include_str!("../deploy/helm/posduif/templates/_helpers.tpl");
const CHART_VALUES: &str = include_str!("../deploy/helm/posduif/values.yaml");

/// The next notification that a supervisor receives.
async fn notification(socket: &tokio::net::UnixDatagram) -> String {
    let mut text = [0; 100];
    let read = tokio::time::timeout(TIMEOUT, socket.recv(&mut text)).await;
    let length = read.expect("the supervisor is notified in time").unwrap();
    String::from_utf8(text[..length].to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn supervisor_is_notified_of_start_and_stop() {
    let world = World::new().await;
    let path = std::env::temp_dir().join(format!("posduif-notify-{}", uuid::Uuid::new_v4().simple()));
    // Tenant a path, systemd may give a name in Linux' abstract namespace.
    let mut places = vec![(UnixDatagram::bind(&path).unwrap(), path.to_str().unwrap().to_owned())];
    #[cfg(target_os = "linux")]
    {
        use std::os::linux::net::SocketAddrExt as _;
        let name = format!("posduif-notify-{}", uuid::Uuid::new_v4().simple());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        places.push((UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}")));
    }
    for (socket, place) in places {
        socket.set_nonblocking(true).unwrap();
        let socket = tokio::net::UnixDatagram::from_std(socket).unwrap();
        let process = world
            .process_under("all", &world.config, None, &[("NOTIFY_SOCKET", &place)], None)
            .await;
        assert_eq!(notification(&socket).await, "READY=1");
        assert_eq!(process.api().get("/health").await.status, 200);
        process.signal(Signal::SIGTERM);
        assert_eq!(notification(&socket).await, "STOPPING=1");
        assert_eq!(process.terminate().await, Some(0));
    }
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn image_build_has_a_stub_for_each_target() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let metadata = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root)
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let paths: BTreeSet<&str> = metadata["packages"][0]["targets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|target| Path::new(target["src_path"].as_str().unwrap()))
        .map(|path| path.strip_prefix(root).unwrap().to_str().unwrap())
        .collect();
    assert!(paths.contains("benches/live/main.rs"), "{paths:?}");
    // Once for the dependencies' layer, once for what is not copied into the last one.
    let (dependencies, rest) = DOCKERFILE.split_once("\nCOPY build.rs").unwrap();
    for path in paths {
        assert!(dependencies.contains(path), "the dependencies' layer has no {path}");
        let is_copied = ["build.rs", "src/"].iter().any(|copied| path.starts_with(copied));
        assert!(is_copied || rest.contains(path), "the build has no {path}");
    }
}

#[test]
fn image_build_finds_what_it_copies_in_its_context() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let admitted: Vec<&str> = include_str!("../.dockerignore")
        .lines()
        .filter_map(|line| line.strip_prefix('!'))
        .collect();
    let mut copied = 0;
    for line in DOCKERFILE.lines().filter_map(|line| line.strip_prefix("COPY ")) {
        if line.contains("--from=") {
            continue;
        }
        let mut words: Vec<&str> = line.split(' ').filter(|word| !word.starts_with("--")).collect();
        words.pop();
        for source in words {
            assert!(root.join(source).exists(), "{source} does not exist");
            let is_admitted = admitted.iter().any(|path| Path::new(source).starts_with(path));
            assert!(is_admitted, ".dockerignore leaves {source} out");
            copied += 1;
        }
    }
    // And nothing else is in the context.
    assert!(copied > 10);
    for path in admitted {
        assert!(
            DOCKERFILE.contains(path),
            ".dockerignore admits {path}, which is not copied"
        );
    }
}

/// Whether the health check of the image passes with these settings.
async fn is_healthy(settings: &[(&str, &str)]) -> bool {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/healthcheck.sh");
    let mut command = tokio::process::Command::new(script);
    let command = command.env_clear().envs(settings.iter().copied());
    command.output().await.unwrap().status.success()
}

#[tokio::test]
async fn image_health_check_follows_the_addresses_in_force() {
    const LISTEN: &str = "POSDUIF__ADMIN__LISTEN";
    let world = World::new().await;
    let engine = world.engine(Role::All).await;
    let (public, admin) = (engine.api(), engine.api().admin());
    let port = |address: &str| address.rsplit_once(':').unwrap().1.to_owned();
    let any = format!("0.0.0.0:{}", port(admin.address()));
    assert!(is_healthy(&[(LISTEN, admin.address())]).await && is_healthy(&[(LISTEN, &any)]).await);
    let public_port = port(public.address());
    let without = |port| {
        [
            (LISTEN, "off"),
            ("POSDUIF__SERVER__HOST", "0.0.0.0"),
            ("POSDUIF__SERVER__PORT", port),
        ]
    };
    assert!(is_healthy(&without(&public_port)).await);

    // Bound, and nothing listens.
    let closed = tokio::net::TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let closed_address = closed.local_addr().unwrap().to_string();
    assert!(!is_healthy(&[(LISTEN, &closed_address)]).await);
    assert!(!is_healthy(&without(&port(&closed_address))).await);

    // Another address of this machine, and a server that answers with an error.
    let other = if cfg!(target_os = "linux") {
        "127.0.0.2:0"
    } else {
        "127.0.0.1:0"
    };
    for (address, answer, expected) in [(other, "200 OK", true), ("127.0.0.1:0", "503 No", false)] {
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let answering = async {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                assert!(client.read_buf(&mut request).await.unwrap() > 0);
            }
            let answer = format!("HTTP/1.0 {answer}\r\n\r\n");
            client.write_all(answer.as_bytes()).await.unwrap();
            request
        };
        let settings = [(LISTEN, address.as_str())];
        let (request, healthy) = tokio::join!(answering, is_healthy(&settings));
        assert_eq!(healthy, expected, "{address}");
        assert!(request.starts_with(b"GET /health "), "{address}");
    }
    engine.stop().await;
}

#[test]
fn every_shipped_setting_exists() {
    let known = include_str!("../.env.example");
    let mut seen = 0;
    for (name, text) in [
        ("Dockerfile", DOCKERFILE),
        ("docker-compose.yml", COMPOSE),
        ("posduif.service", UNIT),
        ("healthcheck.sh", include_str!("../config/healthcheck.sh")),
        ("_helpers.tpl", CHART_HELPERS),
    ] {
        let words =
            text.split(|letter: char| !(letter.is_ascii_uppercase() || letter.is_ascii_digit() || letter == '_'));
        for word in words.filter(|word| word.strip_prefix("POSDUIF__").is_some_and(|key| !key.is_empty())) {
            let setting = match word.strip_suffix("__FILE").unwrap_or(word) {
                "POSDUIF__POSTGRES__URL" => "DATABASE_URL",
                "POSDUIF__REDIS__URL" => "REDIS_URL",
                other => other,
            };
            let is_known = known
                .lines()
                .any(|line| line.trim_start_matches('#').split('=').next() == Some(setting));
            assert!(is_known, "{name}: {word}");
            seen += 1;
        }
    }
    assert!(seen > 5, "{seen}");
}

/// Each setting of `.env.example`, with the comment above it.
fn settings() -> Vec<(&'static str, &'static str, String)> {
    let (mut settings, mut comment) = (Vec::new(), String::new());
    for line in include_str!("../.env.example").lines() {
        match line.trim_start_matches('#').split_once('=') {
            Some((name, value)) if !line.starts_with("# ") => {
                settings.push((name, value, std::mem::take(&mut comment)));
            }
            _ if line.is_empty() => comment.clear(),
            _ => comment.push_str(&line[1..]),
        }
    }
    settings
}

/// The settings in force in a shell that has read such a file as the example says.
fn sourced(text: &str) -> Value {
    let file = std::env::temp_dir().join(format!("posduif-env-{}", uuid::Uuid::new_v4().simple()));
    std::fs::write(&file, text).unwrap();
    let script = r#"set -e; set -a; . "$0"; set +a; exec "$1" config show --json"#;
    let output = Command::new("sh")
        .args(["-c", script])
        .args([&file, Path::new(env!("CARGO_BIN_EXE_posduif"))])
        .current_dir(std::env::temp_dir())
        .env_clear()
        .output()
        .unwrap();
    std::fs::remove_file(&file).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{text}: {said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn env_example_matches_configuration() {
    let whole = include_str!("../.env.example").replace("\n#POSDUIF", "\nPOSDUIF");
    let defaults = sourced("");
    assert_eq!(sourced(&whole), defaults);
    let (mut examples, mut bounds) = (0, 0);
    for (name, value, comment) in settings() {
        let Some(path) = name.strip_prefix("POSDUIF__") else {
            continue;
        };
        let pointer = format!("/{}", path.to_ascii_lowercase().replace("__", "/"));
        // Lists, as a shell takes them.
        for example in comment.split('`').skip(1).step_by(2).filter(|text| text.contains('[')) {
            let shown = sourced(&format!("{name}={example}\n"));
            let list = shown.pointer(&pointer).unwrap();
            let entries = example.matches(',').count() + 1;
            assert!(
                list.as_array().map_or(list == "***", |list| list.len() == entries),
                "{name}={example}: {list}"
            );
            examples += 1;
        }
        // And the value lies within the bounds.
        let number = |text: &str| text.replace(',', "").parse::<f64>();
        if let Some((low, high)) = comment.split(['(', ')']).find_map(|text| {
            Some((
                number(text.split_once(" to ")?.0).ok()?,
                number(text.split_once(" to ")?.1).ok()?,
            ))
        }) {
            let value: f64 = value.parse().unwrap();
            assert!((low..=high).contains(&value), "{name} is {value}, of {low} to {high}");
            bounds += 1;
        }
    }
    assert!(examples >= 2 && bounds > 40, "{examples} {bounds}");
}

#[test]
fn supervisor_timeouts_exceed_those_of_the_engine() {
    let config = Config::default();
    let number = |text: &str, before: &str| -> u64 {
        let rest = text.split_once(before).unwrap_or_else(|| panic!("no {before}")).1;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    };
    let grace = Duration::from_secs(config.server.shutdown_grace_seconds);
    for seconds in [
        number(UNIT, "\nTimeoutStopSec="),
        number(COMPOSE, "stop_grace_period: "),
    ] {
        assert!(Duration::from_secs(seconds) > grace, "{seconds}");
    }
    for descriptors in [number(UNIT, "\nLimitNOFILE="), number(COMPOSE, "nofile: {soft: ")] {
        assert!(
            descriptors > config.server.connections_max as u64 + 100,
            "{descriptors}"
        );
    }
}

/// What stands between `before` and `after`.
fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let rest = text.split_once(before).unwrap_or_else(|| panic!("no {before}")).1;
    rest.split_once(after).unwrap_or_else(|| panic!("no {after}")).0
}

#[test]
fn chart_agrees_with_program_and_image() {
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(between(CHART, "\nversion: ", "\n"), version);
    assert_eq!(between(CHART, "\nappVersion: \"", "\""), version);

    // Defaults that templates repeat.
    let config = Config::default();
    let defaults = [
        (
            "\"server\" \"shutdown_grace_seconds\" ",
            config.server.shutdown_grace_seconds,
        ),
        ("\"server\" \"body_bytes_max\" ", config.server.body_bytes_max as u64),
        ("\"sync\" \"upload_bytes_max\" ", config.sync.upload_bytes_max as u64),
        ("\"state\" \"batch_bytes_max\" ", config.state.batch_bytes_max as u64),
    ];
    for (before, value) in defaults {
        assert_eq!(between(CHART_HELPERS, before, ")"), value.to_string(), "{before}");
    }
    let notes = include_str!("../deploy/helm/posduif/templates/NOTES.txt");
    let pool = between(notes, "\"postgres\" \"pool_size\" ", ")");
    assert_eq!(pool, config.postgres.pool_size.to_string());

    let user = between(DOCKERFILE, "\nUSER ", ":");
    assert_eq!(between(CHART_VALUES, "runAsUser: ", "\n"), user);
    assert_eq!(between(CHART_VALUES, "fsGroup: ", "\n"), user);
    let port = between(DOCKERFILE, "\nEXPOSE ", "\n");
    assert_eq!(between(CHART_HELPERS, "{name: http, containerPort: ", "}"), port);
}

#[test]
fn chart_settings_are_accepted_and_each_secret_is_a_file() {
    let posduif = |arguments: &[&str], variable: (&str, &str)| {
        let command = &mut Command::new(env!("CARGO_BIN_EXE_posduif"));
        let command = command.args(arguments).current_dir(std::env::temp_dir());
        command.env_clear().env(variable.0, variable.1).output().unwrap()
    };
    // The settings of the values, at the left margin.
    let settings: String = between(CHART_VALUES, "\nconfig:\n", "\n\n")
        .lines()
        .map(|line| format!("{}\n", &line[2..]))
        .collect();
    let folder = Folder::new();
    let file = folder.write("config.yaml", &settings);
    let output = posduif(
        &["config", "show", "--json"],
        ("POSDUIF_CONFIG", file.to_str().unwrap()),
    );
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["auth"]["hash_concurrency"], 2);

    // The refusal of a file lists the keys that are read from files.
    let output = posduif(&["config", "check"], ("POSDUIF__SERVER__PORT__FILE", "port"));
    let refusal = String::from_utf8(output.stderr).unwrap();
    let listed = refusal.trim_end().rsplit_once("from files: ").unwrap().1;
    let known: BTreeSet<String> = listed
        .split(", ")
        .map(|key| format!("POSDUIF__{}", key.to_ascii_uppercase().replace('.', "__")))
        .collect();
    let shipped: BTreeSet<String> = CHART_HELPERS
        .split("variable: ")
        .skip(1)
        .filter_map(|rest| rest.split_once(',').map(|(name, _)| name.to_owned()))
        .collect();
    assert!(known.len() >= 10);
    assert_eq!(shipped, known);
}

#[test]
fn chart_has_the_alerts_and_the_dashboard_of_the_project() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for name in ["prometheus-alerts.yml", "grafana-dashboard.json"] {
        let read = |folder: &str| std::fs::read_to_string(root.join(folder).join(name)).unwrap();
        assert_eq!(read("deploy/helm/posduif/files"), read("config"), "{name}");
    }
}

const REDIS_SCRIPT: &str = include_str!("../config/compose/redis.sh");

#[tokio::test]
async fn compose_role_is_no_superuser_and_sufficient_for_an_engine() {
    let (own, folder) = (servers::postgres().await, Folder::new());
    let password = folder.write("password", "it's a \"secret\"\n");
    let url = own.server.url();
    let (login, place) = url.strip_prefix("postgres://").unwrap().rsplit_once('@').unwrap();
    let (superuser, superuser_password) = login.split_once(':').unwrap();
    let (host, rest) = place.split_once(':').unwrap();
    let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
    let output = tokio::process::Command::new("bash")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/compose/postgres-role.sh"))
        .envs([("PGHOST", host), ("PGPORT", &port), ("PGPASSWORD", superuser_password)])
        .envs([
            ("POSTGRES_USER", superuser),
            ("POSDUIF_ROLE", "engine"),
            ("POSDUIF_DATABASE", "engine"),
        ])
        .env("POSDUIF_PASSWORD_FILE", &password)
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let psql = connect(&url).await;
    let role = "SELECT rolsuper OR rolcreatedb OR rolcreaterole OR rolbypassrls, rolreplication AND rolcanlogin \
                FROM pg_roles WHERE rolname = 'engine'";
    let role = psql.query_one(role, &[]).await.unwrap();
    assert_eq!((role.get::<_, bool>(0), role.get::<_, bool>(1)), (false, true));

    let mut world = World::on(&url, &std::env::var("REDIS_URL").unwrap()).await;
    world.config.postgres.url = Secret::new(format!(
        "postgres://engine:it%27s%20a%20%22secret%22@{host}:{port}/engine"
    ));
    let engine = world.engine(Role::All).await;
    world.tenant("acme").await;
    let admin = engine.api().admin();
    eventually("the engine is ready", || async {
        (admin.get("/ready").await.status == 200).then_some(())
    })
    .await;
    engine.stop().await;
    drop(world);
}

#[test]
fn compose_redis_user_has_the_documented_permissions() {
    let docs = include_str!("../docs/operations.md");
    let documented = docs
        .lines()
        .find_map(|line| line.strip_prefix("user posduif on >PASSWORD "))
        .unwrap();
    let shipped = REDIS_SCRIPT
        .lines()
        .find_map(|line| line.strip_prefix("user posduif on >$password "))
        .unwrap();
    let operators = docs.split("need more: `").nth(1).unwrap().split('`').next().unwrap();
    assert_eq!(shipped, format!("{documented} +waitaof {operators}"));
}

#[tokio::test]
async fn compose_redis_admits_the_engine_only_and_ends_at_a_signal() {
    let folder = Folder::new();
    let version = Command::new("redis-server").arg("--version").output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    // Which older servers do not have.
    let script = if version.contains("v=7.0.") {
        REDIS_SCRIPT.replace(" +waitaof", "")
    } else {
        REDIS_SCRIPT.to_owned()
    };
    let (script, password) = (folder.write("redis.sh", &script), folder.write("password", "0123abc\n"));
    let mut server = tokio::process::Command::new("sh")
        .arg(script)
        .args(["--port", "0", "--save", "", "--unixsocket", "socket", "--dir"])
        .arg(folder.path())
        .env("REDIS_PASSWORD_FILE", &password)
        .current_dir(folder.path())
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let socket = folder.path().join("socket");
    let client = |login: &str| {
        let url = format!("unix://{}{login}", socket.display());
        let settings = posduif::config::Redis {
            url: Secret::new(url),
            ..posduif::config::Redis::default()
        };
        posduif::net::redis::client(&settings).unwrap()
    };
    let mut engine = eventually("Redis serves", || async {
        let login = client("?user=posduif&pass=0123abc");
        login.get_multiplexed_async_connection().await.ok()
    })
    .await;
    let mut ask = async |words: &[&str]| {
        let reply: redis::RedisResult<redis::Value> =
            redis::cmd(words[0]).arg(&words[1..]).query_async(&mut engine).await;
        reply
            .map(drop)
            .map_err(|error| error.code().unwrap_or_default().to_owned())
    };
    assert_eq!(ask(&["SET", "posduif:key", "1"]).await, Ok(()));
    for words in [
        &["SET", "other:key", "1"][..],
        &["FLUSHALL"],
        &["CONFIG", "SET", "dir", "/"],
        &["ACL", "LIST"],
        &["KEYS", "*"],
    ] {
        assert_eq!(ask(words).await, Err("NOPERM".to_owned()), "{words:?}");
    }
    let stranger = client("").get_multiplexed_async_connection().await;
    if let Ok(mut stranger) = stranger {
        let reply: redis::RedisResult<String> = redis::cmd("PING").query_async(&mut stranger).await;
        assert_eq!(reply.unwrap_err().code(), Some("NOAUTH"));
    }
    // The shell was replaced, so that the signal reaches Redis.
    crate::support::send_signal(server.id().unwrap(), Signal::SIGTERM);
    let ended = tokio::time::timeout(TIMEOUT, server.wait()).await;
    assert_eq!(ended.expect("it ends in time").unwrap().code(), Some(0));
}

#[test]
fn compose_services_have_bounded_logs_and_no_way_to_privileges() {
    let compose: Value = serde_saphyr::from_str(COMPOSE).unwrap();
    let services = compose["services"].as_object().unwrap();
    assert_eq!(services.len(), 3);
    for (name, service) in services {
        assert_eq!(service["security_opt"], json!(["no-new-privileges:true"]), "{name}");
        assert!(service["logging"]["options"]["max-size"].is_string(), "{name}");
        let ports = service["ports"].as_array().map_or(&[][..], Vec::as_slice);
        assert_eq!(!ports.is_empty(), name == "posduif", "{name}");
        let is_local = |port: &Value| port.as_str().unwrap().starts_with("127.0.0.1:");
        assert!(ports.iter().all(is_local), "{ports:?}");
        let networks = service["networks"].as_array().unwrap();
        assert_eq!(networks.contains(&json!("default")), name == "posduif", "{name}");
    }
    assert_eq!(compose["networks"]["servers"], json!({"internal": true}));
}

#[test]
fn compose_has_no_secret_in_an_environment_or_on_a_command_line() {
    for word in ["PASSWORD:", "JWT_SECRET:", "requirepass", "DATABASE_URL", "REDIS_URL"] {
        assert!(!COMPOSE.contains(word), "{word}");
    }
    // Each secret that a service uses is a file that the head of the file explains.
    let (head, rest) = COMPOSE.split_once("\nservices:").unwrap();
    let (_, declared) = rest.rsplit_once("\nsecrets:\n").unwrap();
    let names: Vec<&str> = declared
        .lines()
        .filter_map(|line| Some(line.trim().split_once(':')?.0))
        .collect();
    assert!(names.len() >= 6, "{names:?}");
    for name in names {
        assert!(head.contains(name), "{name} is not explained");
        assert!(rest.contains(&format!("/run/secrets/{name}\n")), "{name} is not used");
    }
}
