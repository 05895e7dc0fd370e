//! The glossary: what is not written, and what is written instead.

/// Phrases, in lower case, wherever text stands: code, comments, strings, docs. A phrase stands for the same words in a name
/// (`in_vain`, `InVain`), never for a part of a word.
pub(super) const PHRASES: &[(&str, &str)] = &[
    ("told", "receives, is notified, is delivered"),
    ("anew", "again, recreated, restarts"),
    ("born", "created"),
    ("reborn", "recreated"),
    ("birth", "creation"),
    ("rebirth", "recreate_stream"),
    ("patience", "timeout"),
    ("whoever", "the actor: any client, another process"),
    ("spoilt", "of the wrong type"),
    ("made upon", "based on"),
    ("in vain", "without effect"),
    ("for want of", "missing"),
    ("for ever", "indefinitely"),
    ("is not to be had", "is not available"),
    ("put aside", "quarantined"),
    ("takes ill", "refuses"),
    ("lost its standing", "was revoked"),
    ("lost their standing", "was revoked"),
    (
        "history has broken",
        "replication continuity was lost; a new epoch starts",
    ),
];

/// Names in code, exactly so.
pub(super) const NAMES: &[(&str, &str)] = &[
    ("Letter", "OutboxMessage"),
    ("Sight", "Visibility"),
    ("Seers", "Viewers"),
    ("Aside", "QuarantineEntry"),
    ("AsideKind", "QuarantineKind"),
    ("Ahead", "Prefetch"),
    ("send_ahead", "send_prefix"),
    ("wake_at", "set_receive_low_water"),
    ("Surroundings", "SessionContext"),
    ("is_unproven", "is_unverified"),
    ("Outlet", "EventSink"),
    ("Follower", "ChangeListener"),
    ("Seats", "Subscribers"),
    ("SumUp", "ReplayTruncated"),
    ("Takeover", "Upgrade"),
    ("Tenure", "a part of Upgrade"),
    ("Handover", "a part of Upgrade"),
    ("Vitals", "Diagnostics"),
    ("Holdings", "TenantStats"),
    ("Welcomed", "RegisteredDevice"),
    ("Asker", "Viewer"),
    ("Stretch", "Range"),
    ("write_again", "touch_rows"),
    ("connect_alone", "connect_dedicated"),
    ("misuse", "usage_error"),
    ("complain", "warn"),
    ("http_request_seconds", "http_request_duration_seconds"),
    ("sse_events_total", "live_events_total"),
    ("gzip_packed_bytes", "gzip_compressed_bytes"),
    ("trims_waiting", "trim_queue_length"),
    ("PosduifLags", "PosduifReplicationLag"),
    ("PosduifStale", "PosduifStaleReads"),
    ("PosduifSessionsEnd", "PosduifReplicationRestarts"),
];

/// The words of a line, in lower case, with a space on either side of each: names are split at `_` and at capitals.
pub(super) fn words(line: &str) -> String {
    let mut words = String::from(" ");
    let mut was_lower = false;
    for character in line.chars() {
        if character.is_alphabetic() {
            if character.is_uppercase() && was_lower {
                words.push(' ');
            }
            words.extend(character.to_lowercase());
        } else if !words.ends_with(' ') {
            words.push(' ');
        }
        was_lower = character.is_lowercase();
    }
    if !words.ends_with(' ') {
        words.push(' ');
    }
    words
}

/// A phrase or a name, and what to write instead.
pub(super) type Rule = (&'static str, &'static str);

/// The phrases whose words a text has somewhere.
pub(super) fn possible(text: &str) -> Vec<&'static Rule> {
    let lower = text.to_ascii_lowercase();
    let has_words = |phrase: &str| phrase.split(' ').all(|word| lower.contains(word));
    PHRASES.iter().filter(|(phrase, _)| has_words(phrase)).collect()
}

/// Those of the phrases that are in a line.
pub(super) fn phrases(line: &str, possible: &[&'static Rule]) -> Vec<&'static Rule> {
    if possible.is_empty() {
        return Vec::new();
    }
    let words = words(line);
    let is_there = |phrase: &str| words.contains(&format!(" {phrase} "));
    possible
        .iter()
        .filter(|(phrase, _)| is_there(phrase))
        .copied()
        .collect()
}
