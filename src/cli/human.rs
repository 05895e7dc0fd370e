//! Sizes, rates and durations for people. 1 kB is 1,024 bytes, as in the settings of Postgres and `pg_size_pretty`.

/// A size: `512 B`, `1.5 kB`, `16.0 MB`.
pub(super) fn bytes(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    scaled(bytes as f64)
}

/// A rate: `3.2 MB/s`.
pub(super) fn rate(bytes_per_second: f64) -> String {
    if bytes_per_second < 1024.0 {
        return format!("{bytes_per_second:.0} B/s");
    }
    format!("{}/s", scaled(bytes_per_second))
}

fn scaled(bytes: f64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    let mut value = bytes / 1024.0;
    let mut unit = 0;
    // A value that rounds to 1,024.0 belongs to the next unit.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A duration by its two greatest parts: `0.4 s`, `45 s`, `3 min 20 s`, `2 h 5 min`, `12 d 3 h`.
pub(super) fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0);
    if seconds < 10.0 {
        return format!("{seconds:.1} s");
    }
    if seconds > 1e10 {
        return "centuries".to_owned();
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded above")]
    let whole = seconds.round() as u64;
    let two = |great: u64, great_name: &str, small: u64, small_name: &str| match small {
        0 => format!("{great} {great_name}"),
        _ => format!("{great} {great_name} {small} {small_name}"),
    };
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => two(whole / 60, "min", whole % 60, "s"),
        3600..86_400 => two(whole / 3600, "h", whole % 3600 / 60, "min"),
        _ => two(whole / 86_400, "d", whole % 86_400 / 3600, "h"),
    }
}

/// A number with its noun: `1 device`, `2 devices`.
pub(super) fn count(number: impl TryInto<u64>, noun: &str) -> String {
    let number: u64 = number.try_into().unwrap_or_default();
    match number {
        1 => format!("1 {noun}"),
        _ => format!("{number} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_one_decimal() {
        for (size, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 kB"),
            (1024 * 1024 - 1, "1.0 MB"),
            (64 << 20, "64.0 MB"),
            (3 << 40, "3.0 TB"),
        ] {
            assert_eq!(bytes(size), text);
        }
        assert_eq!(rate(12.4), "12 B/s");
        assert_eq!(rate(1_258_291.2), "1.2 MB/s");
    }

    #[test]
    fn times_have_two_parts_at_most() {
        for (seconds, text) in [
            (-1.0, "0.0 s"),
            (0.42, "0.4 s"),
            (45.4, "45 s"),
            (200.0, "3 min 20 s"),
            (7200.0, "2 h"),
            (93_600.0, "1 d 2 h"),
            (1e12, "centuries"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn count_of_one_is_singular() {
        assert_eq!(
            (count(1, "device"), count(0, "device")),
            ("1 device".into(), "0 devices".into())
        );
    }
}
