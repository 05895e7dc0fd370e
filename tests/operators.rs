//! An operator at a shell beside a running engine: users, devices, tenants, status.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::ChildStdout;

use crate::support::command::{posduif_in, posduif_says, run};
use crate::support::office::Office;
use crate::support::{TIMEOUT, World, eventually};

/// Whether somebody may log in.
async fn status_of_login(office: &Office, username: &str, password: &str) -> u16 {
    let body = json!({"tenant": "acme", "username": username, "password": password});
    office.anybody.post("/api/auth/login", &body).await.status.as_u16()
}

#[tokio::test]
async fn password_change_ends_existing_sessions() {
    let office = Office::open().await;
    office.bob.get("/api/auth/sessions").await.expect(200);
    let mut command = posduif_in(&office.world);
    command
        .args(["user", "passwd", "BOB", "--tenant", "acme"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"brand new secret\n")
        .await
        .unwrap();
    let output = child.wait_with_output().await.unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(said, "set the password of bob; sessions with the old one have ended\n");
    assert_eq!(office.bob.get("/api/auth/sessions").await.status, 401);
    assert_eq!(status_of_login(&office, "bob", "brand new secret").await, 200);
    assert_eq!(status_of_login(&office, "bob", crate::support::PASSWORD).await, 401);
    for (arguments, expected) in [
        (
            "user passwd bob --tenant acme --password short",
            "at least 8 characters",
        ),
        ("user passwd bob --tenant acme", "a line on stdin"),
        ("user passwd nobody --tenant acme --password long-enough", "no user"),
        (
            "user passwd bob --tenant nowhere --password long-enough",
            "no tenant nowhere",
        ),
    ] {
        let complaint = posduif_says(&office.world, arguments).await.complaint(1);
        assert!(complaint.contains(expected), "{complaint}");
    }
    office.close().await;
}

#[tokio::test]
async fn disabled_user_is_locked_out_until_enabled() {
    let office = Office::open().await;
    let phone = office.phone("phone-1").await;
    let incoming = async || phone.get("/api/sync/incoming").await.status;
    assert_eq!(incoming().await, 200);
    let disabled = posduif_says(&office.world, "user disable joe --tenant acme --json")
        .await
        .json();
    assert_eq!(
        disabled,
        json!({"id": office.joe_id, "tenant": "acme", "username": "joe", "disabled": true, "changed": true})
    );
    eventually("the phone is refused", || async {
        (incoming().await == 401).then_some(())
    })
    .await;
    let again = posduif_says(&office.world, "user disable joe --tenant acme")
        .await
        .text();
    assert!(again.contains("already"), "{again}");
    let listed = posduif_says(&office.world, "user list --tenant acme --json")
        .await
        .json();
    let joe = |listed: &Value| {
        listed
            .as_array()
            .unwrap()
            .iter()
            .find(|user| user["username"] == "joe")
            .cloned()
    };
    assert!(joe(&listed).unwrap()["disabled_at"].is_string(), "{listed}");
    let shown = posduif_says(&office.world, "user list --tenant acme").await.text();
    assert!(
        shown
            .lines()
            .any(|line| line.contains("joe") && line.contains("disabled")),
        "{shown}"
    );
    let id = office.joe_id.to_string();
    posduif_says(&office.world, &format!("user enable {id} --tenant acme"))
        .await
        .text();
    eventually("the phone is let in", || async {
        (incoming().await == 200).then_some(())
    })
    .await;
    office.close().await;
}

#[tokio::test]
async fn device_list_show_and_revoke_work() {
    let office = Office::open().await;
    let phone = office.phone("phone-1").await;
    office.phone("phone-2").await;
    office.send("hello").await;
    office.world.published().await;
    let synced = phone.get("/api/sync/incoming").await.expect(200);
    let cursor = synced["cursor"].as_str().unwrap();
    phone
        .get(&format!("/api/sync/incoming?cursor={cursor}"))
        .await
        .expect(200);

    let ids = |listed: &Value| -> Vec<String> {
        let devices = listed.as_array().unwrap().iter();
        devices
            .map(|device| device["device_id"].as_str().unwrap().to_owned())
            .collect()
    };
    let listed = posduif_says(&office.world, "device list --tenant acme --json")
        .await
        .json();
    assert_eq!(ids(&listed), ["phone-2", "phone-1"]);
    assert_eq!(listed[0]["username"], "joe");
    let of_bob = posduif_says(&office.world, "device list --tenant acme --user bob --json")
        .await
        .json();
    assert_eq!(of_bob, json!([]));
    let absent = posduif_says(&office.world, "device list --tenant acme --user nobody")
        .await
        .complaint(1);
    assert!(absent.contains("the tenant acme has no user \"nobody\""), "{absent}");
    let shown = posduif_says(&office.world, "device show phone-1 --tenant acme --json")
        .await
        .json();
    assert_eq!(shown["sync"]["status"], "idle");
    assert!(
        shown["sync"]["acknowledged"].is_string() && shown["sync"]["last_sync_at"].is_string(),
        "{shown}"
    );
    let text = posduif_says(&office.world, "device show phone-1 --tenant acme")
        .await
        .text();
    assert!(text.contains("acknowledged") && text.contains("of epoch"), "{text}");

    let asked = posduif_says(&office.world, "device resync phone-1 --tenant acme")
        .await
        .complaint(1);
    assert!(asked.contains("take a snapshot") && asked.contains("--yes"), "{asked}");
    let (_, cursor) = phone.sync(None).await;
    let resynced = posduif_says(&office.world, "device resync phone-1 --tenant acme --yes --json")
        .await
        .json();
    assert_eq!(
        resynced,
        json!({"device_id": "phone-1", "user_id": office.joe_id, "published": true})
    );
    let again = phone
        .get(&format!("/api/sync/incoming?cursor={cursor}"))
        .await
        .expect(200);
    assert_eq!(again["reset"], true, "{again}");

    let asked = posduif_says(&office.world, "device revoke phone-1 --tenant acme")
        .await
        .complaint(1);
    assert!(asked.contains("lose its token") && asked.contains("--yes"), "{asked}");
    let revoked = posduif_says(&office.world, "device revoke phone-1 --tenant acme --yes --json")
        .await
        .json();
    assert_eq!(
        revoked,
        json!({"device_id": "phone-1", "user_id": office.joe_id, "revoked": true})
    );
    eventually("the phone is refused", || async {
        (phone.get("/api/sync/incoming").await.status == 401).then_some(())
    })
    .await;
    let again = posduif_says(&office.world, "device revoke phone-1 --tenant acme --yes")
        .await
        .complaint(1);
    assert!(again.contains("was revoked at"), "{again}");
    let left = posduif_says(&office.world, "device list --tenant acme --json")
        .await
        .json();
    assert_eq!(ids(&left), ["phone-2"]);
    let all = posduif_says(&office.world, "device list --tenant acme --all")
        .await
        .text();
    assert!(all.contains("revoked") && all.contains("enrolled"), "{all}");
    for verb in ["show", "revoke --yes"] {
        let absent = posduif_says(&office.world, &format!("device {verb} nothing --tenant acme"))
            .await
            .complaint(1);
        assert!(absent.contains("no device"), "{absent}");
    }
    office.close().await;
}

#[tokio::test]
async fn output_escapes_control_characters_and_hints_can_be_pasted() {
    let office = Office::open().await;
    office.phone("phone-1").await;
    // As somebody may write it who is no client of ours.
    office
        .sql(
            "UPDATE tenant_acme.devices SET name = E'na\\x1b[2J\\x1b]0;owned\\x07me', \
             device_info = '{\"model\": \"\u{9b}31m\"}'; \
             INSERT INTO tenant_acme.users (id, username, user_type) VALUES \
             ('0e000000-0000-4000-8000-000000000000', E'ev\\x1b[2Jil', 'web'), (gen_random_uuid(), '日本', 'web')",
        )
        .await;
    for (arguments, shown) in [
        ("device list --tenant acme", "na\\u001b[2J\\u001b]0;owned\\u0007me"),
        (
            "device list --tenant acme --json",
            "na\\u001b[2J\\u001b]0;owned\\u0007me",
        ),
        (
            "device show phone-1 --tenant acme",
            "na\\u001b[2J\\u001b]0;owned\\u0007me",
        ),
        ("device show phone-1 --tenant acme --json", "\\u009b31m"),
        ("user list --tenant acme", "ev\\u001b[2Jil"),
        (
            "user disable 0e000000-0000-4000-8000-000000000000 --tenant acme",
            "ev\\u001b[2Jil",
        ),
    ] {
        let text = posduif_says(&office.world, arguments).await.text();
        assert!(text.contains(shown), "{arguments}: {text}");
        let is_plain = |c: char| c == '\n' || !c.is_control();
        assert!(text.chars().all(is_plain), "{arguments}: {text:?}");
    }
    // Wide characters take two columns, and the next column begins where it does in the other lines.
    let text = posduif_says(&office.world, "user list --tenant acme").await.text();
    let place = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        let (before, _) = line.split_once("web").unwrap();
        unicode_width::UnicodeWidthStr::width(before)
    };
    assert_eq!(place("日本"), place("bob"), "{text}");

    for (arguments, hint) in [
        ("user disable nobody --tenant acme", "posduif user list --tenant acme"),
        (
            "device show nothing --tenant acme",
            "posduif device list --tenant acme --all",
        ),
        (
            "stream quarantine show --tenant acme 1-1",
            "posduif stream quarantine list --tenant acme",
        ),
    ] {
        let complaint = posduif_says(&office.world, arguments).await.complaint(1);
        assert!(complaint.contains(&format!("`{hint}`")), "{complaint}");
        posduif_says(&office.world, hint.strip_prefix("posduif ").unwrap())
            .await
            .text();
    }
    office
        .world
        .ask_redis::<redis::Value>(&[
            "SET",
            &office.world.keys().inbox("acme", &office.bob_id.to_string()),
            "x",
        ])
        .await;
    let text = posduif_says(&office.world, "stream list").await.text();
    assert!(text.contains("`posduif stream rebuild --tenant acme`"), "{text}");
    office.close().await;
}

/// A command on a terminal of its own, and the words that name that terminal.
async fn on_a_terminal(world: &World, command: &str) -> (tokio::process::Child, BufReader<ChildStdout>, String) {
    let program = env!("CARGO_BIN_EXE_posduif");
    let mut script = posduif_in(world);
    let settings: Vec<_> = script
        .as_std()
        .get_envs()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
        .collect();
    script = tokio::process::Command::new("script");
    script
        .envs(settings)
        .args(["-qec", &command.replace("posduif", program), "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut child = script.spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut terminal = String::new();
    output.read_line(&mut terminal).await.unwrap();
    (child, output, terminal.trim().to_owned())
}

#[tokio::test]
async fn password_prompt_on_a_terminal_has_no_echo() {
    let office = Office::open().await;
    for (once_more, code) in [("another one", 1), ("typed at last", 0)] {
        let (mut child, mut output, terminal) =
            on_a_terminal(&office.world, "tty; exec posduif user passwd bob --tenant acme").await;
        let mut stdin = child.stdin.take().unwrap();
        let mut said = Vec::new();
        for (prompt, typed) in [("Password: ", "typed at last"), ("Repeat password: ", once_more)] {
            while !said.ends_with(prompt.as_bytes()) {
                let read = tokio::time::timeout(TIMEOUT, output.read_u8()).await;
                said.push(read.expect("it asks").unwrap());
            }
            eventually("nothing typed is shown", || async {
                let state = tokio::process::Command::new("stty")
                    .args(["-F", &terminal, "-a"])
                    .output()
                    .await;
                String::from_utf8(state.unwrap().stdout)
                    .unwrap()
                    .contains(" -echo ")
                    .then_some(())
            })
            .await;
            stdin.write_all(format!("{typed}\n").as_bytes()).await.unwrap();
        }
        output.read_to_end(&mut said).await.unwrap();
        let said = String::from_utf8(said).unwrap();
        assert_eq!(child.wait().await.unwrap().code(), Some(code), "{said}");
        assert!(
            !said.contains("typed at last") && !said.contains("another one"),
            "{said}"
        );
        let expected = if code == 0 {
            "set the password of bob"
        } else {
            "the two passwords differ"
        };
        assert!(said.contains(expected), "{said}");
    }
    assert_eq!(status_of_login(&office, "bob", "typed at last").await, 200);
    office.close().await;
}

#[tokio::test]
async fn watch_output_fits_the_terminal() {
    let office = Office::open().await;
    for tenant in ["one", "two", "three", "four"] {
        posduif_says(&office.world, &format!("tenant create {tenant}"))
            .await
            .text();
    }
    let command = "tty; stty rows 10 cols 40; exec posduif status --watch --interval 0.1 --count 3";
    let (mut child, mut output, _) = on_a_terminal(&office.world, command).await;
    let mut said = String::new();
    output.read_to_string(&mut said).await.unwrap();
    assert_eq!(child.wait().await.unwrap().code(), Some(0), "{said}");
    let frames: Vec<&str> = said.split("\u{1b}[H").skip(1).collect();
    assert_eq!(frames.len(), 3, "{said}");
    for frame in frames {
        // The cursor comes to rest on the last row, so that nothing scrolls.
        assert_eq!(frame.matches('\n').count(), 9, "{frame}");
        assert!(frame.contains(" more\r\n"), "{frame}");
        for line in frame.lines() {
            let plain = console_text(line);
            assert!(unicode_width::UnicodeWidthStr::width(&*plain) <= 40, "{plain}");
        }
    }
    office.close().await;
}

/// What a terminal shows of a line.
fn console_text(line: &str) -> String {
    let mut shown = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        shown.push_str(before);
        rest = after
            .split_once(|c: char| c.is_ascii_alphabetic())
            .map_or("", |(_, rest)| rest);
    }
    shown.push_str(rest);
    shown.replace('\r', "")
}

#[tokio::test]
async fn serve_prints_its_address_as_text_and_json() {
    let world = World::new().await;
    let mut command = posduif_in(&world);
    command
        .env("POSDUIF__AUTH__JWT_SECRET", "a very secret secret of 32 bytes!!")
        .env("POSDUIF__SERVER__PORT", "0")
        .args(["serve", "--role", "api", "--json"])
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // Logs share the output.
    let ready = loop {
        let line = tokio::time::timeout(TIMEOUT, lines.next_line()).await;
        let line = line.expect("it is ready in time").unwrap().expect("it says so");
        if let Ok(ready) = serde_json::from_str::<Value>(&line)
            && ready["ready"] == true
        {
            break ready;
        }
    };
    for url in ["url", "admin_url"] {
        assert!(ready[url].as_str().unwrap().starts_with("http://127.0.0.1:"), "{ready}");
    }
    child.kill().await.unwrap();
}

#[tokio::test]
async fn tenant_show_has_its_contents() {
    let office = Office::open().await;
    office.phone("phone-1").await;
    for n in 0..3 {
        office.send(&format!("message {n}")).await;
    }
    office
        .sql("INSERT INTO tenant_acme.users (username, user_type, disabled_at) VALUES ('gone', 'web', now())")
        .await;
    office.world.published().await;
    let shown = posduif_says(&office.world, "tenant show acme --json").await.json();
    assert_eq!(
        (
            &shown["name"],
            &shown["schema"],
            &shown["state"],
            &shown["registration_open"]
        ),
        (&json!("acme"), &json!("tenant_acme"), &json!("active"), &json!(false))
    );
    let counts: Vec<&Value> = [
        "web_users",
        "mobile_users",
        "disabled_users",
        "devices",
        "open_conflicts",
    ]
    .map(|name| &shown[name])
    .to_vec();
    assert_eq!(counts, [2, 1, 1, 1, 0]);
    let streams = &shown["streams"];
    assert_eq!((&streams["inboxes"], &streams["quarantine"]), (&json!(2), &json!(0)));
    assert!(
        streams["longest_inbox"].as_u64().unwrap() >= 3 && streams["changes"].as_u64().unwrap() >= 6,
        "{shown}"
    );
    let text = posduif_says(&office.world, "tenant show acme").await.text();
    assert!(text.contains("2 web, 1 mobile, 1 of them disabled"), "{text}");
    office.close().await;
}

#[tokio::test]
async fn status_shows_every_part_and_marks_unreachable_ones() {
    let office = Office::open().await;
    office.phone("phone-1").await;
    office.send("hello").await;
    office.ready().await;
    office.world.published().await;
    let url = format!("http://{}", office.anybody.address());
    let look = async |arguments: &[&str], redis: Option<&str>| {
        let mut command = posduif_in(&office.world);
        command.env("POSDUIF__SERVER__PUBLIC_URL", &url);
        command.env("POSDUIF__ADMIN__LISTEN", office.anybody.admin().address());
        if let Some(redis) = redis {
            command.env("POSDUIF__REDIS__URL", redis);
        }
        run(&mut command, arguments).await
    };
    let status = look(&["status", "--json"], None).await.json();
    assert_eq!(
        (&status["engine"]["reachable"], &status["engine"]["ready"]),
        (&json!(true), &json!(true))
    );
    assert_eq!(
        (&status["freshness"]["fresh"], &status["epoch"]["number"]),
        (&json!(true), &json!(1))
    );
    for stage in ["received", "published", "durable", "acknowledged", "confirmed"] {
        assert!(status["lag_bytes"][stage].is_u64(), "{stage}: {status}");
    }
    assert_eq!(status["slot"]["verdict"], "in use");
    let version = run(&mut posduif_in(&office.world), &["--version"]).await.text();
    let version = version.trim().strip_prefix("posduif ").unwrap();
    assert_eq!(status["version"], version);
    let acme = &status["tenants"][0];
    assert_eq!(
        (
            &acme["name"],
            &acme["users"],
            &acme["devices"],
            &acme["open_conflicts"],
            &acme["quarantine"]
        ),
        (&json!("acme"), &json!(2), &json!(1), &json!(0), &json!(0))
    );
    let text = look(&["status"], None).await.text();
    for expected in [version, "ready at http://", "lag", "TENANT", "acme", "in use"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let twice = look(
        &["status", "--watch", "--interval", "0.1", "--count", "2", "--json"],
        None,
    )
    .await
    .text();
    assert_eq!(twice.lines().count(), 2, "{twice}");
    let away = look(&["status", "--json"], Some("redis://:hidden@127.0.0.1:1/0")).await;
    assert_eq!(away.code, Some(1));
    assert!(
        away.stderr.contains("cannot use Redis at 127.0.0.1:1"),
        "{}",
        away.stderr
    );
    let shown: Value = serde_json::from_str(&away.stdout).unwrap();
    assert_eq!(
        (&shown["redis"]["reachable"], &shown["postgres"]["reachable"]),
        (&json!(false), &json!(true))
    );
    assert_eq!(shown["tenants"][0]["users"], 2);
    // An unknown value is not printed as "never".
    assert_eq!(
        (
            &shown["freshness"]["fresh"],
            &shown["epoch"],
            &shown["tenants"][0]["shared"]
        ),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    let text = look(&["status"], Some("redis://:hidden@127.0.0.1:1/0")).await.stdout;
    assert!(!text.contains("nothing is published yet"), "{text}");
    for fact in ["published ", "epoch "] {
        let line = text.lines().find(|line| line.starts_with(fact)).unwrap();
        assert!(line.ends_with("unknown: Redis is unreachable"), "{text}");
    }
    office.close().await;
}

#[tokio::test]
async fn status_finds_the_engine_by_environment_or_argument() {
    let office = Office::open().await;
    office.ready().await;
    let url = format!("http://{}", office.anybody.address());
    for arguments in [vec!["status", "--json"], vec!["doctor", "--json"]] {
        let mut by_environment = posduif_in(&office.world);
        by_environment.env("POSDUIF_URL", format!("{url}/"));
        let said = run(&mut by_environment, &arguments).await.stdout;
        let mut by_option = posduif_in(&office.world);
        // The option counts, and an admin listener that does not answer is no obstacle.
        by_option.env("POSDUIF_URL", "http://127.0.0.1:1");
        by_option.env("POSDUIF_ADMIN_URL", "http://127.0.0.1:1");
        let named = [&arguments[..], &["--url", &url]].concat();
        for said in [said, run(&mut by_option, &named).await.stdout] {
            let said: Value = serde_json::from_str(&said).unwrap();
            let found = match arguments[0] {
                "status" => said["engine"]["url"] == url && said["engine"]["ready"] == true,
                _ => {
                    let checks = said["checks"].as_array().unwrap();
                    let engine = checks
                        .iter()
                        .find(|check| check["name"] == "engine.public_url")
                        .unwrap();
                    engine["found"] == url && engine["level"] == "ok"
                }
            };
            assert!(found, "{said}");
        }
    }
    office.close().await;
}

#[tokio::test]
async fn status_names_key_of_wrong_type_with_tenant_beside_other_findings() {
    let office = Office::open().await;
    office.world.tenant("other").await;
    office.world.published().await;
    let keys = office.world.keys();
    let spoil = async |key: &str| office.world.ask_redis::<()>(&["SET", key, "x"]).await;
    let says = async |arguments: &str| posduif_says(&office.world, arguments).await;

    spoil(&keys.shared("acme")).await;
    let status = says("status --json").await.json();
    assert_eq!(
        (
            &status["redis"]["reachable"],
            &status["redis"]["error"],
            &status["epoch"]["number"]
        ),
        (&json!(true), &Value::Null, &json!(1))
    );
    assert_eq!(status["freshness"]["fresh"], true);
    let (acme, other) = (&status["tenants"][0], &status["tenants"][1]);
    assert_eq!((&acme["shared"], &acme["quarantine"]), (&Value::Null, &json!(0)));
    assert!(
        acme["changes"].is_u64() && other["shared"].is_u64() && other["error"].is_null(),
        "{status}"
    );
    let mends = format!(
        "the key {} holds a string, which Posduif did not write; `posduif stream rebuild --tenant acme --yes` recreates it",
        keys.shared("acme")
    );
    assert_eq!(acme["error"], mends);
    let text = says("status").await.text();
    assert!(text.contains(&format!("acme: {mends}")), "{text}");
    assert!(!text.contains("nothing is published yet"), "{text}");
    says("stream rebuild --tenant acme --yes").await.text();
    assert!(says("status --json").await.json()["tenants"][0]["error"].is_null());

    // What is in the other tenant's quarantine is shown all the same.
    let aside = ["XADD", &keys.quarantine("other"), "*", "cause", "a reason"];
    let _: String = office.world.ask_redis(&aside).await;
    spoil(&keys.quarantine("acme")).await;
    let asides = says("stream quarantine").await;
    assert!(
        asides.code == Some(1) && asides.stdout.contains("a reason"),
        "{}",
        asides.stdout
    );
    let shown = says("tenant show acme --json").await.json();
    assert_eq!(shown["streams"]["quarantine"], Value::Null);
    assert_eq!(shown["web_users"], 1);
    let list = says("stream list").await.text();
    assert!(list.contains("wrong type: string"), "{list}");
    let mends = format!("DEL '{}'` removes it", keys.quarantine("acme"));
    for said in [
        asides.stderr.as_str(),
        shown["streams"]["error"].as_str().unwrap(),
        &says("tenant show acme").await.text(),
        &says("stream quarantine show --tenant acme 1-1").await.complaint(1),
    ] {
        assert!(said.contains(&mends) && !said.contains("Pipeline"), "{said}");
    }
    let _: i64 = office.world.ask_redis(&["DEL", &keys.quarantine("acme")]).await;

    spoil(&keys.meta("acme")).await;
    let list = says("stream list --json").await.json();
    let error = list["tenants"][0]["error"].as_str().unwrap();
    assert!(
        error.contains(&keys.meta("acme")) && error.contains("`posduif tenant resync acme --yes`"),
        "{error}"
    );
    assert!(list["tenants"][0]["changes"]["length"].as_u64().unwrap() > 0, "{list}");
    assert_eq!(
        (&list["tenants"][1]["error"], &list["tenants"][1]["state"]),
        (&Value::Null, &json!("active"))
    );
    let listed = says("stream list --tenant acme").await.text();
    assert!(listed.contains(error), "{listed}");
    says("tenant resync acme --yes").await.text();
    office.world.published().await;
    assert!(says("stream list --json").await.json()["tenants"][0]["error"].is_null());
    office.close().await;
}

#[tokio::test]
async fn tenant_with_missing_schema_or_table_is_reported_by_every_command() {
    let office = Office::open().await;
    office.world.tenant("other").await;
    let says = async |arguments: &str| posduif_says(&office.world, arguments).await;
    let judged = async || {
        let report: Value = serde_json::from_str(&says("doctor --json").await.stdout).unwrap();
        let checks = report["checks"].as_array().unwrap().clone();
        checks
            .into_iter()
            .find(|check| check["name"] == "postgres.tenants")
            .unwrap()
    };
    assert_eq!(judged().await["level"], "ok");

    office.sql("DROP TABLE tenant_other.devices CASCADE").await;
    let check = judged().await;
    assert_eq!(
        (&check["level"], &check["found"]),
        (&json!("fail"), &json!("missing: tenant_other.devices"))
    );
    let complaint = says("tenant show other").await.complaint(1);
    assert!(complaint.contains("tenant_other.devices"), "{complaint}");

    office.sql("DROP SCHEMA tenant_other CASCADE").await;
    let check = judged().await;
    assert_eq!(
        (&check["level"], &check["found"]),
        (&json!("fail"), &json!("missing: the schema tenant_other"))
    );
    let mends = "posduif tenant drop other --yes";
    assert!(check["meaning"].as_str().unwrap().contains(mends), "{check}");
    let list = says("tenant list --json").await.json();
    assert_eq!(
        list[1],
        json!({"name": "other", "schema": "tenant_other", "lane": "main", "state": "schema missing"})
    );
    let status = says("status --json").await.json();
    let other = &status["tenants"][1];
    assert_eq!(
        (&other["name"], &other["state"]),
        (&json!("other"), &json!("schema missing"))
    );
    assert!(other["error"].as_str().unwrap().contains(mends), "{other}");
    let migrated = says("migrate status --json").await.json();
    let missing: Vec<&Value> = migrated
        .as_array()
        .unwrap()
        .iter()
        .map(|schema| &schema["missing"])
        .collect();
    assert_eq!(missing, [&Value::Null, &Value::Null, &json!(true)]);
    assert!(
        says("migrate status")
            .await
            .text()
            .lines()
            .any(|line| { line.contains("tenant_other") && line.contains("missing") })
    );
    for arguments in ["tenant show other", "tenant create other", "user list --tenant other"] {
        let complaint = says(arguments).await.complaint(1);
        assert!(
            complaint.contains("the schema tenant_other") && complaint.contains(mends),
            "{complaint}"
        );
    }
    says("tenant drop other --yes").await.text();
    assert!(
        says("tenant create other")
            .await
            .text()
            .contains("created the tenant other")
    );
    assert_eq!(judged().await["level"], "ok");
    office.close().await;
}
