//! `posduif stream`: list, tail, trim, rebuild, quarantine, and consumer groups of `changes`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use posduif::accounts::users::UserType;
use posduif::contract::control::{self, Trim};
use posduif::contract::stream_name::Target;
use posduif::core::position::StreamId;
use posduif::engine::Role;
use posduif::postgres::tenants;
use posduif::redis::store::Store;
use serde_json::{Value, json};
use tokio::process::Command;
use uuid::Uuid;

use crate::phone::{Http, Phone};
use crate::support::command::{posduif_in, posduif_says as run, run as run_with};
use crate::support::office::Office;
use crate::support::running::Running;
use crate::support::stage::Stage;
use crate::support::{TIMEOUT, World, eventually, servers};

/// A file that goes with the test.
struct File(PathBuf);

impl File {
    fn new(kind: &str) -> Self {
        Self(std::env::temp_dir().join(format!("posduif-streams-{}.{kind}", Uuid::new_v4().simple())))
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.0).unwrap_or_default()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.0);
    }
}

#[tokio::test]
async fn stream_list_shows_streams_of_each_tenant_and_their_problems() {
    let stage = Stage::new().await;
    let sally = stage.user("sally").await;
    for n in 0..3 {
        stage.message(stage.bob, stage.joe, &format!("message {n}")).await;
    }
    stage.world.published().await;
    let key = stage.world.keys().inbox("acme", &sally.to_string());
    let _: String = stage.world.ask_redis(&["SET", &key, "no stream"]).await;

    let list = run(&stage.world, "stream list --json").await.json();
    let acme = &list["tenants"][0];
    assert_eq!(
        (&acme["tenant"], &acme["state"], &acme["generation"]),
        (&json!("acme"), &json!("active"), &json!(1))
    );
    // A reset, three users, three messages.
    assert_eq!(acme["changes"]["length"], 7);
    let last = &acme["changes"]["last"];
    assert!(
        last["id"].as_str().unwrap().ends_with("-1") && last["time"].as_str().unwrap().ends_with('Z'),
        "{last}"
    );
    assert!(last["commit_lsn"].as_str().unwrap().contains('/'), "{last}");
    assert!(acme["changes"]["memory_bytes"].as_u64().unwrap() > 100);
    assert_eq!(
        (&acme["inboxes"]["count"], &acme["inboxes"]["unusable"]),
        (&json!(2), &json!(1))
    );
    assert_eq!(acme["inboxes"]["longest"]["length"], 4);
    assert_eq!(
        (&acme["quarantine"]["type"], &acme["stopped"]),
        (&json!("none"), &json!([]))
    );
    assert_eq!(list["live"]["type"], "stream");
    let text = run(&stage.world, "stream list").await.text();
    assert!(
        text.contains("inboxes of the wrong type: 1") && text.contains("TRIMMED BELOW"),
        "{text}"
    );

    let shown = run(&stage.world, "stream show acme/inbox:joe --json").await.json();
    assert_eq!(
        (
            &shown["tenant"],
            &shown["user_id"],
            &shown["length"],
            &shown["entries_max"]
        ),
        (&json!("acme"), &json!(stage.joe.to_string()), &json!(4), &json!(50_000))
    );
    assert_eq!(
        (&shown["devices"], &shown["slowest_device"]),
        (&json!([]), &Value::Null)
    );
    let key = stage.world.keys().changes("acme");
    let by_key = run(&stage.world, &format!("stream show {key} --json")).await.json();
    assert_eq!((&by_key["stream"], &by_key["length"]), (&json!("changes"), &json!(7)));
    assert!(run(&stage.world, "stream show live").await.text().contains("live:0"));
    for (wrong, code) in [
        ("acme", 2),
        ("acme/nothing", 2),
        ("nowhere/changes", 1),
        ("acme/inbox:nobody", 1),
    ] {
        let complaint = run(&stage.world, &format!("stream show {wrong}")).await.complaint(code);
        assert!(complaint.contains("no "), "{complaint}");
    }
    stage.stop().await;
}

#[tokio::test]
async fn stream_list_shows_cause_and_remedy_of_a_stopped_stream() {
    let stage = Stage::new().await;
    stage.world.published().await;
    let key = stage.world.keys().shared("acme");
    let _: () = stage.world.ask_redis(&["SET", &key, "not a stream"]).await;
    stage.user("sally").await;
    stage.world.published().await;
    let list = run(&stage.world, "stream list --tenant acme --json").await.json();
    let acme = &list["tenants"][0];
    assert_eq!(acme["shared"]["type"], "string");
    assert_eq!(acme["stopped"][0]["stream"], "shared");
    let text = run(&stage.world, "stream list").await.text();
    assert!(
        text.contains("WRONGTYPE") && text.contains("stream rebuild --tenant acme"),
        "{text}"
    );
    stage.stop().await;
}

#[tokio::test]
async fn stream_tail_shows_sql_writes_within_100_ms() {
    let stage = Stage::new().await;
    stage.world.published().await;
    let mut tail = Running::start(&stage.world, "stream tail");
    tail.says("following acme/changes").await;
    let mut fastest = Duration::MAX;
    for n in 0..10 {
        let content = format!("message {n}");
        let id = stage.message(stage.bob, stage.joe, &content).await;
        let committed = Instant::now();
        let line = tail.line().await;
        fastest = fastest.min(committed.elapsed());
        assert!(line.contains("acme  insert    messages"), "{line}");
        assert!(
            line.contains(&id.to_string()) && line.contains(&format!("content \"{content}\"")),
            "{line}"
        );
        assert!(!line.contains('\u{1b}'), "no colours into a pipe: {line}");
    }
    // The machine may be busy with other tests; the way itself must not take longer.
    assert!(fastest < Duration::from_millis(100), "{fastest:?}");
    stage
        .sql("UPDATE tenant_acme.messages SET content = 'changed' WHERE content = 'message 3'")
        .await;
    let line = tail.line().await;
    assert!(
        line.contains("content \"message 3\" -> \"changed\"") && !line.contains("sender_id"),
        "{line}"
    );
    assert_eq!(tail.end(Signal::SIGINT).await, Some(0));
    stage.stop().await;
}

#[tokio::test]
async fn stream_tail_filters_and_starts_at_a_given_position() {
    let stage = Stage::new().await;
    stage.message(stage.bob, stage.joe, "first").await;
    let before: String = stage
        .psql
        .query_one("SELECT pg_current_wal_lsn()::text", &[])
        .await
        .unwrap()
        .get(0);
    let second = stage.message(stage.bob, stage.joe, "second").await;
    stage
        .sql("DELETE FROM tenant_acme.messages WHERE content = 'first'")
        .await;
    stage
        .sql("CREATE TABLE tenant_acme.notes (id int PRIMARY KEY, body json)")
        .await;
    stage
        .sql("INSERT INTO tenant_acme.notes VALUES (1, E'{\"a\":\\n 1}')")
        .await;
    let changes = stage.changes().await;
    let tail = async |words: String| -> Vec<Value> {
        let lines = run(&stage.world, &format!("stream tail --json {words}")).await.text();
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let ops = |lines: &[Value]| -> Vec<String> {
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        lines
            .iter()
            .map(|line| format!("{} {}", text(&line["op"]), text(&line["table"])))
            .collect()
    };

    let all = tail(format!("--from start --limit {}", changes.len())).await;
    assert_eq!(
        ops(&all),
        [
            "reset -",
            "insert users",
            "insert users",
            "insert messages",
            "insert messages",
            "delete messages",
            "insert notes"
        ]
    );
    assert_eq!(all[4]["row_id"], second.to_string());
    assert_eq!(all[4]["row"]["content"], "second");
    // Verbatim JSON may hold ends of lines; a line of output is one change.
    assert_eq!(all[6]["row"]["body"], json!({"a": 1}));
    let messages = tail("--from start --table messages --op insert,delete --count 3".into()).await;
    assert_eq!(ops(&messages[1..]), ["insert messages", "delete messages"]);
    let from_id = tail(format!("--from {} --limit 1", changes[4].id)).await;
    assert_eq!(from_id[0]["id"], changes[4].id.to_string());
    let from_lsn = tail(format!("--from {before} --limit 1")).await;
    assert_eq!(from_lsn[0]["row"]["content"], "second");
    let time = all[4]["time"].as_str().unwrap();
    let from_time = tail(format!("--from {time} --limit 1")).await;
    assert_eq!(from_time[0]["id"], all[4]["id"]);
    let ago = tail("--from 1h --limit 2".into()).await;
    assert_eq!(ago[0]["op"], "reset");
    // What a user sees is another stream: the delete reaches both, other tables nobody.
    let joe = tail("--user joe --tenant acme --from start --op insert,delete --table messages -n 3".into()).await;
    assert_eq!(ops(&joe), ["insert messages", "insert messages", "delete messages"]);
    assert_eq!(
        (&joe[0]["event"], &joe[0]["stream"]),
        (&json!("new_message"), &json!(format!("inbox:{}", stage.joe)))
    );

    for wrong in [
        "tail --from yesterday",
        "tail --op nothing",
        "tail --limit 0",
        "tail --user joe",
    ] {
        let ended = run(&stage.world, &format!("stream {wrong}")).await;
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains("--help"), "{}", ended.stderr);
    }
    let store = Store::new(&stage.world.config.redis).unwrap();
    let position = store.view().await.unwrap().position;
    for verb in ["tail --tenant acme --limit 1", "groups create --tenant acme late"] {
        for (place, expected) in [
            ("99999999999999-0", "beyond what is published"),
            ("FFFFFF/0", "beyond what is published"),
            ("2099-01-01T00:00:00Z", "is in the future"),
        ] {
            let complaint = run(&stage.world, &format!("stream {verb} --from {place}"))
                .await
                .complaint(1);
            assert!(complaint.contains(expected), "{complaint}");
            let end = complaint
                .split("ends at ")
                .nth(1)
                .map(|rest| rest.split(' ').next().unwrap());
            if let Some(end) = end {
                assert!(end.parse::<StreamId>().unwrap() >= position, "{complaint}");
            }
        }
    }
    // Where a reader goes on that has all.
    let next = store.view().await.unwrap().position.next();
    let made = run(
        &stage.world,
        &format!("stream groups create --tenant acme late --from {next} --json"),
    )
    .await
    .json();
    assert_eq!(made["after"], next.previous().to_string());
    stage.stop().await;
}

#[tokio::test]
async fn stream_tail_follows_new_tenants_and_reports_resets_and_gaps() {
    let stage = Stage::new().await;
    stage.world.published().await;
    let mut tail = Running::start(&stage.world, "stream tail --json --from start --op insert,reset");
    assert_eq!(tail.json().await["op"], "reset");
    stage.world.tenant("beta").await;
    stage.world.user("beta", "ann", UserType::Web).await;
    let mut of_beta = Vec::new();
    while of_beta.len() < 2 {
        let line = tail.json().await;
        if line["tenant"] == "beta" {
            of_beta.push(line["op"].clone());
        }
    }
    assert_eq!(of_beta, ["reset", "insert"]);
    tenants::resync(&stage.world.database().await, "acme").await.unwrap();
    let reset = tail.json().await;
    assert_eq!((&reset["tenant"], &reset["op"]), (&json!("acme"), &json!("reset")));
    assert_eq!(tail.end(Signal::SIGTERM).await, Some(0));

    let trimmed = run(&stage.world, "stream trim acme/changes --keep 1 --yes --json")
        .await
        .json();
    let lines = run(&stage.world, "stream tail --tenant acme --json --from start --limit 1")
        .await
        .text();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        (&lines[0]["op"], &lines[0]["first"]),
        (&json!("gap"), &trimmed["trimmed_below"])
    );
    assert_eq!(lines[1]["op"], "reset");
    let text = run(&stage.world, "stream tail --tenant acme --from start --limit 1")
        .await
        .text();
    assert!(
        text.contains("were trimmed") && text.contains("readers take a snapshot"),
        "{text}"
    );
    stage.stop().await;
}

#[tokio::test]
async fn stream_tail_survives_redis_restart_and_ends_with_its_reader() {
    let mut own = servers::redis().await;
    let postgres = std::env::var("DATABASE_URL").expect("run ./scripts/test");
    let world = World::on(&postgres, &own.server.url()).await;
    let stage = Stage::on(world).await;
    stage.world.published().await;
    let mut tail = Running::start(&stage.world, "stream tail");
    tail.says("following").await;
    own.server.kill().await.unwrap();
    tail.says("Redis is unreachable").await;
    let id = stage.message(stage.bob, stage.joe, "while Redis is away").await;
    own.server.restart().await.unwrap();
    tail.says("Redis is reachable again").await;
    loop {
        // What Redis lost with its last second comes again, and may have been shown before.
        if tail.line().await.contains(&id.to_string()) {
            break;
        }
    }
    let unread = tail.close_stdout();
    stage.message(stage.bob, stage.joe, "for nobody").await;
    let (code, errors) = unread.ended(TIMEOUT).await;
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    stage.stop().await;
}

#[tokio::test]
async fn stream_trim_lists_affected_readers_and_forces_snapshots() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let (_, cursor) = phone.sync(None).await;
    for content in ["one", "two", "three"] {
        office.send(content).await;
    }
    office.world.published().await;
    // Asking with a cursor acknowledges it.
    let batch = phone
        .get(&format!("/api/sync/incoming?cursor={cursor}&limit=1"))
        .await
        .expect(200);
    assert_eq!(batch["messages"].as_array().unwrap().len(), 1);

    let shown = run(&office.world, "stream show acme/inbox:joe --json").await.json();
    assert_eq!(shown["slowest_device"], "phone");
    assert_eq!(shown["devices"][0]["behind"], 3);
    let complaint = run(&office.world, "stream trim acme/inbox:joe --keep 1")
        .await
        .complaint(1);
    assert!(
        complaint.contains("1 devices") && complaint.contains("phone") && complaint.contains("--yes"),
        "{complaint}"
    );
    let still = run(&office.world, "stream show acme/inbox:joe --json").await.json();
    assert_eq!(still["length"], shown["length"]);

    let trimmed = run(&office.world, "stream trim acme/inbox:joe --keep 1 --yes --json")
        .await
        .json();
    assert_eq!(trimmed["devices"], json!(["phone"]));
    let after = run(&office.world, "stream show acme/inbox:joe --json").await.json();
    assert_eq!(
        (&after["length"], &after["trimmed_below"]),
        (&json!(1), &trimmed["trimmed_below"])
    );
    let batch = phone
        .get(&format!("/api/sync/incoming?cursor={cursor}"))
        .await
        .expect(200);
    assert_eq!(
        (&batch["reset"], batch["messages"].as_array().unwrap().len()),
        (&json!(true), 3)
    );

    let nothing = run(&office.world, "stream trim acme/inbox:joe --keep 5 --yes")
        .await
        .text();
    assert!(nothing.contains("nothing to do"), "{nothing}");
    let complaint = run(&office.world, "stream trim live --keep 5 --yes").await.complaint(1);
    assert!(complaint.contains("only changes, shared and inboxes"), "{complaint}");
    for wrong in ["acme/changes", "acme/changes --keep 1 --before 1h", ""] {
        assert_eq!(
            run(&office.world, &format!("stream trim {wrong}")).await.code,
            Some(2),
            "{wrong}"
        );
    }
    office.close().await;
}

#[tokio::test]
async fn stream_trim_point_only_advances() {
    let stage = Stage::new().await;
    for n in 0..4 {
        stage.message(stage.bob, stage.joe, &format!("message {n}")).await;
    }
    let ids: Vec<StreamId> = stage.changes().await.iter().map(|entry| entry.id).collect();
    let database = stage.world.database().await;
    let target = Target::Changes("acme".into());
    // The second one waited somewhere while the first was made; the third would hide what is not published yet.
    for min_id in [ids[4], ids[2], StreamId { ms: u64::MAX, seq: 1 }] {
        let before = run(&stage.world, "stream show acme/changes --json").await.json();
        let trim = Trim {
            target: target.clone(),
            min_id,
        };
        tenants::send(&database, &control::Command::Trim(trim)).await.unwrap();
        stage.world.published().await;
        let after = run(&stage.world, "stream show acme/changes --json").await.json();
        let point = |shown: &Value| {
            shown["trimmed_below"]
                .as_str()
                .and_then(|id| id.parse::<StreamId>().ok())
        };
        assert!(point(&before) <= point(&after), "{before} {after}");
    }
    stage.message(stage.bob, stage.joe, "afterwards").await;
    let left = stage.changes().await;
    assert_eq!(left.len(), 1, "{left:?}");
    let shown = run(&stage.world, "stream show acme/changes --json").await.json();
    let point: StreamId = shown["trimmed_below"].as_str().unwrap().parse().unwrap();
    assert!(point <= left[0].id && point > ids[6]);
    stage.stop().await;
}

#[tokio::test]
async fn stream_rebuild_recreates_lost_and_wrong_typed_streams_and_converges() {
    let office = Office::open().await;
    let world = &office.world;
    let sally = world.user("acme", "sally", UserType::Mobile).await;
    let without_device = world.user("acme", "idle", UserType::Mobile).await;
    let http = Http::new(&format!("http://{}", office.anybody.address()));
    let mut phones = Vec::new();
    for user in [office.joe_id, sally] {
        let file = File::new("db");
        let body = json!({"user_id": user});
        let enrollment = office.bob.post("/api/enrollment/create", &body).await.expect(201);
        let mut phone = Phone::open(&file.0).unwrap();
        phone
            .enroll(&http, enrollment["token"].as_str().unwrap())
            .await
            .unwrap();
        phone.sync(&http).await.unwrap();
        phones.push((user, phone, file));
    }
    let outln = async |to: Uuid, content: &str| {
        let body = json!({"recipient_id": to, "content": content});
        office.bob.post("/api/messages", &body).await.expect(201);
    };
    outln(office.joe_id, "before").await;
    world.published().await;
    for (_, phone, _) in &mut phones {
        phone.sync(&http).await.unwrap();
    }

    // One inbox is deleted, one has the wrong type, as `shared` has, and one belongs to no user.
    let keys = world.keys();
    let inbox = |user: Uuid| keys.inbox("acme", &user.to_string());
    let _: i64 = world
        .ask_redis(&["DEL", &inbox(office.joe_id), &inbox(without_device)])
        .await;
    let _: () = world.ask_redis(&["SET", &inbox(sally), "a string"]).await;
    let _: () = world.ask_redis(&["SET", &keys.shared("acme"), "a string"]).await;
    let nobody = Uuid::new_v4();
    let _: String = world.ask_redis(&["XADD", &inbox(nobody), "1-1", "op", "insert"]).await;
    let history: i64 = world.ask_redis(&["XLEN", &keys.changes("acme")]).await;
    outln(office.joe_id, "lost").await;
    outln(sally, "refused").await;
    office
        .sql("DELETE FROM tenant_acme.messages WHERE content = 'before'")
        .await;
    world.published().await;

    let complaint = run(world, "stream rebuild --tenant acme").await.complaint(1);
    assert!(
        complaint.contains("2 devices") && complaint.contains("--yes"),
        "{complaint}"
    );
    let rebuilt = run(world, "stream rebuild --tenant acme --yes --json").await.json();
    assert_eq!((&rebuilt["inboxes"], &rebuilt["devices"]), (&json!(4), &json!(2)));
    // It is requested again where a concurrent entry was refused.
    assert!(rebuilt["generation"].as_i64().unwrap() >= 2, "{rebuilt}");
    assert_eq!(
        (&rebuilt["removed"], &rebuilt["changes_lost"]),
        (&json!([nobody]), &json!(false))
    );
    outln(office.joe_id, "after").await;
    world.published().await;
    for user in [office.bob_id, office.joe_id, sally, without_device] {
        assert_eq!(world.stream(&inbox(user)).await[0].field("op"), "reset", "{user}");
    }
    assert_eq!(
        world
            .ask_redis::<i64>(&["EXISTS", &inbox(nobody), &keys.stopped()])
            .await,
        0
    );
    // Others' history goes on, with a reset in it.
    assert!(world.ask_redis::<i64>(&["XLEN", &keys.changes("acme")]).await > history);
    let list = run(world, "stream list --json").await.json();
    assert_eq!(
        (
            &list["tenants"][0]["stopped"],
            &list["tenants"][0]["inboxes"]["unusable"]
        ),
        (&json!([]), &json!(0))
    );

    for (user, phone, _) in &mut phones {
        phone.sync(&http).await.unwrap();
        let held: BTreeMap<String, String> = phone
            .messages()
            .unwrap()
            .into_values()
            .map(|message| (message.id, message.content))
            .collect();
        let rows = world.psql().await;
        let sql = "SELECT id::text, content FROM tenant_acme.messages \
                   WHERE (recipient_id = $1 OR sender_id = $1) AND deleted_at IS NULL";
        let rows = rows.query(sql, &[user]).await.unwrap();
        let truth: BTreeMap<String, String> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        assert_eq!(held, truth);
        assert!(!truth.is_empty());
    }
    drop(phones);
    office.close().await;
}

#[tokio::test]
async fn stream_rebuild_removes_entries_ahead_of_the_wal() {
    let stage = Stage::new().await;
    stage.world.published().await;
    let key = stage.world.keys().changes("acme");
    let _: String = stage
        .world
        .ask_redis(&["XADD", &key, "18446744073709551614-1", "op", "insert"])
        .await;
    let complaint = run(&stage.world, "stream rebuild --tenant acme").await.complaint(1);
    assert!(complaint.contains("lose its history"), "{complaint}");
    let rebuilt = run(&stage.world, "stream rebuild --tenant acme --yes --json")
        .await
        .json();
    assert_eq!(rebuilt["changes_lost"], true);
    let id = stage.message(stage.bob, stage.joe, "taken").await;
    let changes = stage.changes().await;
    assert_eq!(
        changes.iter().map(|entry| entry.field("op")).collect::<Vec<_>>(),
        ["reset", "insert"]
    );
    assert_eq!(changes[1].json("row")["id"], id.to_string());
    stage.stop().await;
}

#[tokio::test]
async fn stream_rebuild_without_engine_reports_no_replication() {
    let mut stage = Stage::new().await;
    stage.world.published().await;
    stage.engine.take().unwrap().stop().await;
    let rebuild = Running::start(&stage.world, "stream rebuild --tenant acme --yes");
    // It waits, and what it has asked for is done by the engine that comes.
    stage.engine = Some(stage.world.engine(Role::Replicator).await);
    assert_eq!(rebuild.ended().await, Some(0));
    assert_eq!(stage.inbox(stage.joe).await.len(), 1);
    stage.stop().await;
}

#[tokio::test]
async fn consumer_groups_are_created_shown_and_dropped_with_pending_entries() {
    let stage = Stage::new().await;
    stage.world.published().await;
    let world = &stage.world;
    let key = world.keys().changes("acme");
    let made = run(world, "stream groups create --tenant acme search --from start --json")
        .await
        .json();
    assert_eq!((&made["group"], &made["after"]), (&json!("search"), &json!("0-0")));
    run(world, "stream groups create --tenant acme late").await.text();
    let complaint = run(world, "stream groups create --tenant acme search")
        .await
        .complaint(1);
    assert!(complaint.contains("already"), "{complaint}");
    for n in 0..5 {
        stage.message(stage.bob, stage.joe, &format!("message {n}")).await;
    }
    world.published().await;
    let read = [
        "XREADGROUP",
        "GROUP",
        "search",
        "one",
        "COUNT",
        "4",
        "STREAMS",
        &key,
        ">",
    ];
    let _: redis::Value = world.ask_redis(&read).await;

    let groups = run(world, "stream groups list --json").await.json();
    let of = |groups: &Value, name: &str| -> Value {
        groups
            .as_array()
            .unwrap()
            .iter()
            .find(|group| group["group"] == name)
            .unwrap()
            .clone()
    };
    let search = of(&groups, "search");
    assert_eq!(
        (
            &search["consumers"],
            &search["pending"],
            &search["lag"],
            &search["state"]
        ),
        (&json!(1), &json!(4), &json!(4), &json!("ok"))
    );
    assert_eq!(of(&groups, "late")["lag"], 5);
    let shown = run(world, "stream groups show --tenant acme search --json")
        .await
        .json();
    assert_eq!(
        (&shown["consumers"][0]["consumer"], &shown["consumers"][0]["pending"]),
        (&json!("one"), &json!(4))
    );
    assert_eq!(shown["pending_entries"].as_array().unwrap().len(), 4);
    let text = run(world, "stream groups show --tenant acme search").await.text();
    assert!(
        text.contains("streams.changes_entries_max") && text.contains("PENDING ENTRY"),
        "{text}"
    );

    // Slower than the retention: the gap is reported.
    let complaint = run(world, "stream trim acme/changes --keep 2").await.complaint(1);
    assert!(
        complaint.contains("2 consumer groups") && complaint.contains("late"),
        "{complaint}"
    );
    run(world, "stream trim acme/changes --keep 2 --yes").await.text();
    let groups = run(world, "stream groups --json").await.json();
    assert_eq!(
        (&of(&groups, "search")["state"], &of(&groups, "search")["missed"]),
        (&json!("missed"), &json!(2))
    );
    assert_eq!(
        (&of(&groups, "late")["state"], &of(&groups, "late")["missed"]),
        (&json!("missed"), &Value::Null),
        "Redis cannot tell of a group that has read nothing"
    );
    assert!(
        run(world, "stream groups list")
            .await
            .text()
            .contains("missed 2 entries")
    );
    // It reads on, and is well again.
    let _: redis::Value = world
        .ask_redis(&["XREADGROUP", "GROUP", "late", "one", "STREAMS", &key, ">"])
        .await;
    let groups = run(world, "stream groups list --tenant acme --json").await.json();
    assert_eq!(
        (&of(&groups, "late")["state"], &of(&groups, "late")["lag"]),
        (&json!("ok"), &json!(0))
    );

    let complaint = run(world, "stream groups drop --tenant acme search").await.complaint(1);
    assert!(
        complaint.contains("4 pending") && complaint.contains("--yes"),
        "{complaint}"
    );
    run(world, "stream groups drop --tenant acme search --yes").await.text();
    let complaint = run(world, "stream groups show --tenant acme search").await.complaint(1);
    assert!(complaint.contains("no group search"), "{complaint}");
    stage.stop().await;
}

#[tokio::test]
async fn quarantine_is_listed_shown_and_purged() {
    let stage = Stage::with(|config| config.outbox.logical_messages = true).await;
    stage.world.published().await;
    let world = &stage.world;
    assert_eq!(run(world, "stream quarantine --json").await.json(), json!([]));
    let emit = "SELECT pg_logical_emit_message(true, 'posduif:x', $1::text)";
    for to in ["joe", "\u{1b}[31mann"] {
        let content = json!({"tenant": "acme", "to": to}).to_string();
        stage.psql.execute(emit, &[&content]).await.unwrap();
    }
    world.published().await;
    let listed = run(world, "stream quarantine list --tenant acme --json").await.json();
    assert_eq!(listed.as_array().unwrap().len(), 2);
    assert!(
        listed[0]["cause"].as_str().unwrap().contains("list of user ids"),
        "{listed}"
    );
    let id = listed[1]["id"].as_str().unwrap();
    let shown = run(world, &format!("stream quarantine show --tenant acme {id} --json"))
        .await
        .json();
    assert!(shown["content"].as_str().unwrap().contains("joe"), "{shown}");
    assert_eq!(shown["position"], listed[1]["position"]);
    let text = run(world, "stream quarantine").await.text();
    assert!(text.contains("posduif:x") && !text.contains('\u{1b}'), "{text}");

    let complaint = run(world, &format!("stream quarantine drop --tenant acme {id}"))
        .await
        .complaint(1);
    assert!(
        complaint.contains("1 quarantined changes") && complaint.contains("--yes"),
        "{complaint}"
    );
    let dropped = run(
        world,
        &format!("stream quarantine drop --tenant acme {id} --yes --json"),
    )
    .await
    .json();
    assert_eq!(dropped["dropped"], 1);
    let complaint = run(world, &format!("stream quarantine show --tenant acme {id}"))
        .await
        .complaint(1);
    assert!(complaint.contains(id), "{complaint}");
    let dropped = run(world, "stream quarantine drop --tenant acme --all --yes --json")
        .await
        .json();
    assert_eq!(dropped["dropped"], 1);
    assert!(run(world, "stream quarantine").await.text().contains("empty"));
    assert_eq!(
        run(world, "stream quarantine drop --tenant acme --yes").await.code,
        Some(2)
    );
    stage.stop().await;
}

/// The IDs in a tenant's quarantine, oldest first, with what settles each.
async fn quarantined(world: &World) -> Vec<(String, String)> {
    let listed = run(world, "stream quarantine list --tenant acme --json").await.json();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut found: Vec<(String, String)> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|aside| (text(&aside["id"]), text(&aside["settled_by"])))
        .collect();
    found.reverse();
    found
}

#[tokio::test]
async fn quarantined_change_is_delivered_once_after_its_cause_is_fixed() {
    let stage = Stage::with(|config| {
        config.outbox.logical_messages = true;
        config.routes = serde_json::from_value(json!([
            {"table": "orders", "to": ["customer"], "event": "order"},
            {"table": "late", "to": ["owner"], "event": "late", "when": {"changed": ["title"]}},
        ]))
        .unwrap();
    })
    .await;
    let (world, joe) = (&stage.world, stage.joe);
    let retry = async |arguments: &str| run(world, &format!("stream quarantine retry --tenant acme {arguments}")).await;
    stage
        .sql(
            "CREATE TABLE tenant_acme.orders (id text PRIMARY KEY, customer text);
             CREATE TABLE tenant_acme.late (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, title text)",
        )
        .await;
    for statement in [
        "INSERT INTO tenant_acme.late (title) VALUES ('new')",
        "INSERT INTO tenant_acme.late (title) VALUES ('old')",
        "UPDATE tenant_acme.late SET title = 'newer' WHERE id = 2",
        "INSERT INTO tenant_acme.orders VALUES ('1', 'somebody')",
        "INSERT INTO tenant_acme.orders VALUES ('2', 'somebody')",
        "SELECT pg_logical_emit_message(true, 'posduif:x', '{\"tenant\": \"acme\", \"to\": 1}')",
    ] {
        stage.sql(statement).await;
    }
    world.published().await;
    let asides = quarantined(world).await;
    let remedies: Vec<&str> = asides.iter().map(|(_, remedy)| remedy.as_str()).collect();
    assert_eq!(remedies, ["retry", "retry", "resync", "retry", "retry", "sender"]);
    let shown = run(world, &format!("stream quarantine show --tenant acme {}", asides[2].0)).await;
    assert!(shown.text().contains("--resync"));

    // Before anything is mended: each says why it stays, and nothing is added.
    let ended = retry("--all").await;
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.stdout.contains("settled 0 ") && ended.stdout.contains("names column owner"),
        "{}",
        ended.stdout
    );
    assert!(
        ended.stdout.contains("\"somebody\" is not a user id"),
        "{}",
        ended.stdout
    );
    assert_eq!(quarantined(world).await, asides);

    // The table is mended; the rule asks for another title, but this row is new to Joe.
    stage
        .sql(&format!("ALTER TABLE tenant_acme.late ADD owner uuid DEFAULT '{joe}'"))
        .await;
    let settled = retry(&format!("{} --json", asides[0].0)).await.json();
    assert_eq!(settled, json!({"tenant": "acme", "settled": 1, "left": []}));
    let delivered = async || -> Vec<(String, Value, String)> {
        let inbox = stage.inbox(joe).await;
        let rows = inbox
            .iter()
            .filter(|entry| entry.field("table") != "users" && entry.field("op") != "reset");
        rows.map(|entry| {
            (
                entry.field("op").to_owned(),
                entry.json("row")["id"].clone(),
                entry.field("event").to_owned(),
            )
        })
        .collect()
    };
    let late = ("insert".to_owned(), json!(1), "late".to_owned());
    assert_eq!(delivered().await, std::slice::from_ref(&late));

    // One order is mended by hand, which tells of it; the other one goes.
    stage
        .sql(&format!(
            "UPDATE tenant_acme.orders SET customer = '{joe}' WHERE id = '1'; DELETE FROM tenant_acme.orders WHERE id = '2'"
        ))
        .await;
    let order = ("insert".to_owned(), json!("1"), "order".to_owned());
    assert_eq!(delivered().await, [late.clone(), order.clone()]);
    stage
        .sql(
            "CREATE FUNCTION tenant_acme.object() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN RAISE EXCEPTION 'late is closed'; END $$;
             CREATE TRIGGER object BEFORE UPDATE ON tenant_acme.late EXECUTE FUNCTION tenant_acme.object()",
        )
        .await;
    let ended = retry(&format!("{} {} {}", asides[1].0, asides[3].0, asides[4].0)).await;
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.stdout.contains("settled 2 ") && ended.stdout.contains("late is closed"),
        "{}",
        ended.stdout
    );
    assert_eq!(
        delivered().await,
        [late.clone(), order.clone(), order.clone()],
        "delivered again as it is"
    );

    // What a row cannot settle, a resync does; what was sent malformed, only its sender.
    let complaint = retry("--all --resync").await.complaint(1);
    assert!(
        complaint.contains("settles 2 changes") && complaint.contains("--yes"),
        "{complaint}"
    );
    let ended = retry("--all --resync --yes").await;
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.stdout.contains("settled 2 ") && ended.stdout.contains("send a corrected message"),
        "{}",
        ended.stdout
    );
    let generation: i64 = world
        .ask_redis(&["HGET", &world.keys().meta("acme"), "generation"])
        .await;
    assert_eq!((generation, quarantined(world).await), (2, vec![asides[5].clone()]));
    assert_eq!(retry("").await.code, Some(2), "it must be said which");
    stage.stop().await;
}

/// Every verb that works on a tenant, without and with what it needs.
const VERBS: [&str; 14] = [
    "list",
    "show acme/changes",
    "tail --limit 1",
    "trim acme/changes --keep 1 --yes",
    "rebuild --tenant acme --yes",
    "groups",
    "groups list",
    "groups create --tenant acme g",
    "groups show --tenant acme g",
    "groups drop --tenant acme g --yes",
    "quarantine",
    "quarantine show --tenant acme 1-1",
    "quarantine retry --tenant acme --all",
    "quarantine drop --tenant acme --all --yes",
];

#[tokio::test]
async fn stream_commands_report_unreachable_postgres_or_redis() {
    let world = World::new().await;
    for verb in VERBS {
        for (name, url, server) in [
            (
                "POSDUIF__POSTGRES__URL",
                "postgres://nobody:hidden@127.0.0.1:1/nothing",
                "Postgres",
            ),
            ("POSDUIF__REDIS__URL", "redis://:hidden@127.0.0.1:1/0", "Redis"),
        ] {
            let mut command = posduif_in(&world);
            command.env(name, url);
            let complaint = run_with(&mut command, &format!("stream {verb}").split(' ').collect::<Vec<_>>())
                .await
                .complaint(1);
            assert!(
                complaint.contains(server) && !complaint.contains("hidden"),
                "{verb}: {complaint}"
            );
        }
    }
    for wrong in [
        "",
        "nothing",
        "show",
        "rebuild",
        "groups create",
        "groups drop g",
        "quarantine show --tenant a x",
    ] {
        let ended = run(&world, &format!("stream {wrong}")).await;
        assert_eq!(
            (ended.code, ended.stdout.as_str()),
            (Some(2), ""),
            "{wrong}: {}",
            ended.stderr
        );
    }
    // A database in which nobody has migrated yet.
    let complaint = run(&world, "stream list").await.complaint(1);
    assert!(complaint.contains("posduif migrate up"), "{complaint}");
}

/// A consumer as docs/consumers.md has it, which appends what it is given to a file.
fn consumer(world: &World, name: &str, command: &str) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/consumer.sh");
    let mut consumer = Command::new(script);
    consumer
        .args([&world.keys().changes("acme"), "search", name, "sh", "-c", command])
        .env("REDIS_URL", world.config.redis.url.expose())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true);
    consumer
}

#[tokio::test]
async fn documented_consumer_gets_all_in_order_once_even_when_killed() {
    let stage = Stage::new().await;
    stage.world.published().await;
    let world = &stage.world;
    run(world, "stream groups create --tenant acme search --from start")
        .await
        .text();
    let file = File::new("jsonl");
    let take = format!("cat >> {}", file.0.display());
    // It takes the entry in, and dies before it can say so.
    let dying = format!("{take}; kill -9 $PPID");
    stage.message(stage.bob, stage.joe, "first").await;
    world.published().await;
    let mut died = consumer(world, "one", &dying).spawn().unwrap();
    tokio::time::timeout(TIMEOUT, died.wait()).await.unwrap().unwrap();
    // A reset, two users, a message; of these the first has been given.
    let mut running = consumer(world, "one", &take).spawn().unwrap();
    let expect = async |count: usize| -> Vec<Value> {
        eventually("the consumer has all", || async {
            let text = file.text();
            let lines: Vec<Value> = text
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect();
            (lines.len() >= count).then_some(lines)
        })
        .await
    };
    let lines = expect(5).await;
    let ops: Vec<&str> = lines.iter().map(|line| line[1][1].as_str().unwrap()).collect();
    assert_eq!(ops, ["reset", "reset", "insert", "insert", "insert"]);
    assert_eq!(
        lines[0][0], lines[1][0],
        "at least once: the one that it died of comes again"
    );
    let ids: Vec<StreamId> = lines[1..]
        .iter()
        .map(|line| line[0].as_str().unwrap().parse().unwrap())
        .collect();
    assert!(ids.is_sorted(), "{ids:?}");
    eventually("all is acknowledged", || async {
        let groups = run(world, "stream groups --json").await.json();
        (groups[0]["pending"] == 0 && groups[0]["lag"] == 0).then_some(())
    })
    .await;

    // The stream is recreated, and its group is gone with it: it starts with the reset.
    let key = world.keys().changes("acme");
    let _: i64 = world.ask_redis(&["DEL", &key]).await;
    stage.message(stage.bob, stage.joe, "second").await;
    world.published().await;
    let lines = expect(6).await;
    assert_eq!(lines[5][1][1], "reset");
    stage.message(stage.bob, stage.joe, "third").await;
    let lines = expect(7).await;
    assert!(lines[6].to_string().contains("third"), "{lines:?}");
    running.kill().await.unwrap();
    stage.stop().await;
}

#[tokio::test]
async fn documented_consumer_commands_work() {
    let stage = Stage::new().await;
    stage.message(stage.bob, stage.joe, "first").await;
    stage.world.published().await;
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/consumers.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    let (_, block) = docs.split_once("```sh\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    // Nobody waits here until another has been silent for a minute.
    let block = block.replace("60000", "0");
    assert!(
        block.contains("XREADGROUP") && block.contains("XACK") && block.contains("XAUTOCLAIM"),
        "{block}"
    );
    let script = format!(
        "set -euo pipefail\n\
         posduif() {{ {} \"$@\"; }}\n\
         redis-cli() {{ command redis-cli -u \"$REDIS_URL\" --no-auth-warning -e \"${{@/#posduif:/$PREFIX:}}\"; }}\n\
         {block}",
        env!("CARGO_BIN_EXE_posduif")
    );
    let settings: Vec<_> = posduif_in(&stage.world)
        .as_std()
        .get_envs()
        .map(|(name, value)| (name.to_owned(), value.map(ToOwned::to_owned)))
        .collect();
    let mut command = Command::new("bash");
    for (name, value) in settings {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
        .env("REDIS_URL", stage.world.config.redis.url.expose())
        .env("PREFIX", &stage.world.config.redis.prefix)
        .stdin(Stdio::null());
    let output = tokio::time::timeout(TIMEOUT, command.args(["-c", &script]).output())
        .await
        .unwrap()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(text.contains("insert") && text.contains("first"), "{text}");
    let groups = run(&stage.world, "stream groups --json").await.json();
    // A reset, two users, a message: all were given, the first is acknowledged, the rest went to the second consumer.
    let group = &groups[0];
    assert_eq!(
        (&group["pending"], &group["lag"], &group["consumers"]),
        (&json!(3), &json!(0), &json!(2)),
        "{text}"
    );
    assert_eq!(group["oldest_pending"]["consumer"], "two");
    stage.stop().await;
}
