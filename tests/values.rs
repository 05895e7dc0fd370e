//! Column values on their way from Postgres to JSON.

use serde_json::{Value, json};

use crate::support::Entry;
use crate::support::stage::Stage;

async fn entries(stage: &Stage, table: &str) -> Vec<Entry> {
    let mut entries = stage.changes().await;
    entries.retain(|entry| entry.field("table") == table);
    entries
}

#[tokio::test]
async fn every_type_becomes_the_documented_json() {
    let stage = Stage::new().await;
    stage
        .sql(
            "CREATE TYPE public.mood AS ENUM ('sad', 'so so');
             CREATE DOMAIN public.percent AS int CHECK (VALUE BETWEEN 0 AND 100);
             CREATE DOMAIN public.nick AS text;
             CREATE DOMAIN public.flags AS boolean[];
             CREATE TYPE public.pair AS (a int, b text);",
        )
        .await;
    // What each value is in SQL, and what it must be in JSON.
    let cases: Vec<(&str, &str, Value)> = vec![
        ("boolean", "true", json!(true)),
        ("boolean", "false", json!(false)),
        ("boolean", "NULL", json!(null)),
        ("smallint", "-32768", json!(-32768)),
        ("int", "2147483647", json!(2_147_483_647)),
        ("bigint", "9007199254740992", json!(9_007_199_254_740_992_i64)),
        ("bigint", "-9007199254740992", json!(-9_007_199_254_740_992_i64)),
        ("bigint", "9007199254740993", json!("9007199254740993")),
        ("bigint", "-9223372036854775808", json!("-9223372036854775808")),
        ("real", "1.5", json!(1.5)),
        ("double precision", "0.1", json!(0.1)),
        ("double precision", "1e300", json!(1e300)),
        ("double precision", "-1.5e-7", json!(-1.5e-7)),
        ("double precision", "'NaN'", json!("NaN")),
        ("double precision", "'-Infinity'", json!("-Infinity")),
        ("numeric", "12.50", json!("12.50")),
        ("numeric", "12345678901234567890.123", json!("12345678901234567890.123")),
        ("numeric", "'NaN'", json!("NaN")),
        (
            "text",
            "E'tab\\t \"quoted\" back\\\\slash \\n é 日本 \\u0001'",
            json!("tab\t \"quoted\" back\\slash \n é 日本 \u{1}"),
        ),
        ("text", "''", json!("")),
        ("char(4)", "'ab'", json!("ab  ")),
        ("bytea", "'\\x00ff10'", json!("AP8Q")),
        ("bytea", "''", json!("")),
        (
            "uuid",
            "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'",
            json!("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        ),
        (
            "timestamptz",
            "'2026-01-02 03:04:05.678+02'",
            json!("2026-01-02T01:04:05.678Z"),
        ),
        ("timestamptz", "'infinity'", json!("infinity")),
        ("timestamp", "'2026-01-02 03:04:05'", json!("2026-01-02T03:04:05")),
        ("date", "'2026-01-02'", json!("2026-01-02")),
        ("interval", "'1 day 02:03:04'", json!("1 day 02:03:04")),
        ("inet", "'10.0.0.1/8'", json!("10.0.0.1/8")),
        ("int4range", "'[1,5)'", json!("[1,5)")),
        ("pair", "ROW(1, 'x y')", json!("(1,\"x y\")")),
        ("mood", "'so so'", json!("so so")),
        ("percent", "42", json!(42)),
        ("nick", "'Jo'", json!("Jo")),
        ("flags", "'{t,f}'", json!([true, false])),
        ("int[]", "'{1,NULL,3}'", json!([1, null, 3])),
        ("int[]", "'{{1,2},{3,4}}'", json!([[1, 2], [3, 4]])),
        ("int[]", "'[0:1]={5,6}'", json!([5, 6])),
        ("int[]", "'{}'", json!([])),
        ("bigint[]", "'{9007199254740993}'", json!(["9007199254740993"])),
        (
            "text[]",
            "ARRAY['a,b', 'c\"d', 'e\\f', NULL, 'NULL', '', '{}']",
            json!(["a,b", "c\"d", "e\\f", null, "NULL", "", "{}"]),
        ),
        ("numeric[]", "'{1.50}'", json!(["1.50"])),
        ("boolean[]", "'{t}'", json!([true])),
        (
            "timestamptz[]",
            "ARRAY['2026-01-02 03:04:05+00'::timestamptz]",
            json!(["2026-01-02T03:04:05Z"]),
        ),
        ("bytea[]", "ARRAY['\\x00ff'::bytea]", json!(["AP8="])),
        ("jsonb[]", "ARRAY['{\"a\": [1]}'::jsonb]", json!([{"a": [1]}])),
        ("mood[]", "ARRAY['sad','so so']::mood[]", json!(["sad", "so so"])),
        (
            "uuid[]",
            "'{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}'",
            json!(["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]),
        ),
    ];
    let columns: Vec<String> = cases
        .iter()
        .enumerate()
        .map(|(n, (kind, ..))| format!("c{n} {kind}"))
        .collect();
    let values: Vec<&str> = cases.iter().map(|(_, value, _)| *value).collect();
    stage
        .sql(&format!(
            "CREATE TABLE tenant_acme.samples ({}); INSERT INTO tenant_acme.samples VALUES ({})",
            columns.join(", "),
            values.join(", ")
        ))
        .await;
    let entries = entries(&stage, "samples").await;
    let row = entries[0].json("row");
    for (n, (kind, value, expected)) in cases.iter().enumerate() {
        assert_eq!(&row[format!("c{n}")], expected, "{kind} {value}");
    }
    assert_eq!(row.as_object().unwrap().len(), cases.len());
    stage.stop().await;
}

#[tokio::test]
async fn json_keeps_its_text_under_any_database_setting() {
    let mut stage = Stage::new().await;
    // Whatever the database prefers, streams have one form.
    let name = stage.psql.query_one("SELECT current_database()", &[]).await.unwrap();
    let name: String = name.get(0);
    stage
        .sql(&format!(
            "ALTER DATABASE {name} SET \"TimeZone\" = 'Asia/Kolkata';
             ALTER DATABASE {name} SET \"DateStyle\" = 'SQL, DMY';
             ALTER DATABASE {name} SET \"IntervalStyle\" = 'iso_8601';
             ALTER DATABASE {name} SET bytea_output = 'escape';
             ALTER DATABASE {name} SET extra_float_digits = -15"
        ))
        .await;
    stage.engine.take().unwrap().stop().await;
    stage.engine = Some(stage.world.engine(posduif::engine::Role::Replicator).await);
    stage
        .sql(
            r#"CREATE TABLE tenant_acme.samples (doc json, docb jsonb, at timestamptz, day date, span interval, raw bytea, f float8);
               INSERT INTO tenant_acme.samples VALUES (
                   '{"b":  1, "a": [ ], "big": 12345678901234567890, "a": 2}', '{"b": 1e2, "a": null}',
                   '2026-01-02 03:04:05Z', '2026-01-02', '1 day 2 hours', '\x00ff', 0.1234567890123456)"#,
        )
        .await;
    let entries = entries(&stage, "samples").await;
    let row = entries[0].field("row");
    assert_eq!(
        row,
        r#"{"doc":{"b":  1, "a": [ ], "big": 12345678901234567890, "a": 2},"docb":{"a": null, "b": 100},"#.to_owned()
            + r#""at":"2026-01-02T03:04:05Z","day":"2026-01-02","span":"1 day 02:00:00","raw":"AP8=","f":0.1234567890123456}"#
    );
    stage.stop().await;
}

#[tokio::test]
async fn unchanged_toast_value_is_taken_from_the_old_row() {
    let stage = Stage::new().await;
    // Random hexadecimal digits: 32 kB that do not compress to less than a page's part, so that they are moved out.
    let large = "(SELECT string_agg(md5(n::text), '') FROM generate_series(1, 1000) n)";
    stage
        .sql(&format!(
            "CREATE TABLE tenant_acme.papers (id text PRIMARY KEY, body text, stars int);
             INSERT INTO tenant_acme.papers VALUES ('a', {large}, 1);
             UPDATE tenant_acme.papers SET stars = 2"
        ))
        .await;
    let entries = entries(&stage, "papers").await;
    let body = entries[0].json("row")["body"].clone();
    assert_eq!(body.as_str().unwrap().len(), 32_000);
    assert_eq!(entries[1].json("row"), json!({"id": "a", "body": body, "stars": 2}));
    assert_eq!(entries[1].json("old"), json!({"id": "a", "body": body, "stars": 1}));
    assert_eq!(entries[1].field("unchanged"), "");
    stage.stop().await;
}

#[tokio::test]
async fn default_replica_identity_lists_unchanged_columns() {
    let stage = Stage::new().await;
    // Posduif gives each table of a tenant the full identity; an operator may insist on another one.
    stage
        .sql(
            "CREATE TABLE tenant_acme.papers (id text PRIMARY KEY, body text, stars int);
             ALTER EVENT TRIGGER posduif_full_identity DISABLE;
             ALTER TABLE tenant_acme.papers REPLICA IDENTITY DEFAULT;
             ALTER EVENT TRIGGER posduif_full_identity ENABLE;
             INSERT INTO tenant_acme.papers
                 VALUES ('a', (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 1000) n), 1);
             UPDATE tenant_acme.papers SET stars = 2;
             UPDATE tenant_acme.papers SET id = 'b';
             DELETE FROM tenant_acme.papers",
        )
        .await;
    let entries = entries(&stage, "papers").await;
    let delivered: Vec<(Value, Value, Value)> = entries[1..]
        .iter()
        .map(|entry| (entry.json("row"), entry.json("old"), entry.json("unchanged")))
        .collect();
    assert_eq!(
        delivered,
        [
            (json!({"id": "a", "stars": 2}), Value::Null, json!(["body"])),
            (json!({"id": "b", "stars": 2}), json!({"id": "a"}), json!(["body"])),
            (Value::Null, json!({"id": "b"}), Value::Null),
        ]
    );
    stage.stop().await;
}
