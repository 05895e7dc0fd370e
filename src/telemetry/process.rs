//! Metrics of the process from the operating system, under the standard names of Prometheus' client libraries.
//!
//! They are read from `/proc` (proc(5)), so they exist on Linux only.

use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

/// The current `process_*` metrics.
pub fn registry() -> Registry {
    let mut now = Registry::default();
    #[cfg(target_os = "linux")]
    linux::register(&mut now);
    now
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs;

    use super::{ConstCounter, ConstGauge, Registry};

    /// Unreadable values are omitted.
    pub(super) fn register(now: &mut Registry) {
        if let Some(stat) = fs::read_to_string("/proc/self/stat")
            .ok()
            .as_deref()
            .and_then(Stat::parse)
        {
            let ticks = rustix::param::clock_ticks_per_second() as f64;
            let page = rustix::param::page_size() as f64;
            now.register(
                "process_cpu_seconds",
                "CPU time used in user and system mode, in seconds",
                ConstCounter::new(stat.cpu_ticks as f64 / ticks),
            );
            now.register(
                "process_resident_memory_bytes",
                "Resident memory in bytes",
                ConstGauge::new(stat.resident_pages as f64 * page),
            );
            now.register(
                "process_virtual_memory_bytes",
                "Virtual memory in bytes",
                ConstGauge::new(stat.virtual_bytes as f64),
            );
            now.register(
                "process_threads",
                "Threads of the process",
                ConstGauge::new(stat.threads as f64),
            );
            if let Some(boot) = fs::read_to_string("/proc/stat").ok().as_deref().and_then(boot_seconds) {
                now.register(
                    "process_start_time_seconds",
                    "Start time of the process, in seconds since 1970",
                    ConstGauge::new(boot as f64 + stat.start_ticks as f64 / ticks),
                );
            }
        }
        if let Ok(descriptors) = fs::read_dir("/proc/self/fd") {
            now.register(
                "process_open_fds",
                "Open file descriptors of the process",
                // The listing itself uses one.
                ConstGauge::new(descriptors.count().saturating_sub(1) as f64),
            );
        }
        if let Some(most) = fs::read_to_string("/proc/self/limits")
            .ok()
            .as_deref()
            .and_then(fds_max)
        {
            now.register(
                "process_max_fds",
                "Maximum number of open file descriptors",
                ConstGauge::new(most),
            );
        }
    }

    /// Fields of `/proc/self/stat`.
    #[derive(Debug, PartialEq, Eq)]
    struct Stat {
        cpu_ticks: u64,
        threads: u64,
        start_ticks: u64,
        virtual_bytes: u64,
        resident_pages: u64,
    }

    impl Stat {
        fn parse(text: &str) -> Option<Self> {
            // The program's name, in parentheses, may contain any character.
            let (_, rest) = text.rsplit_once(')')?;
            // proc(5) counts fields from 1; the first two are the process ID and the name.
            let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
            let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
            Some(Self {
                cpu_ticks: field(14)?.saturating_add(field(15)?),
                threads: field(20)?,
                start_ticks: field(22)?,
                virtual_bytes: field(23)?,
                resident_pages: field(24)?,
            })
        }
    }

    fn boot_seconds(text: &str) -> Option<u64> {
        text.lines()
            .find_map(|line| line.strip_prefix("btime "))?
            .trim()
            .parse()
            .ok()
    }

    /// The soft limit; `unlimited` is infinite.
    fn fds_max(text: &str) -> Option<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
        match line.split_ascii_whitespace().next()? {
            "unlimited" => Some(f64::INFINITY),
            number => number.parse().ok(),
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn program_name_may_contain_any_character() {
            let numbers: Vec<String> = (4..=52).map(|number| number.to_string()).collect();
            let text = format!("7 (a ) b (c) S {}", numbers.join(" "));
            assert_eq!(
                Stat::parse(&text),
                Some(Stat {
                    cpu_ticks: 14 + 15,
                    threads: 20,
                    start_ticks: 22,
                    virtual_bytes: 23,
                    resident_pages: 24,
                })
            );
            assert_eq!(Stat::parse("7 (a) S 1"), None);
            assert_eq!(Stat::parse(""), None);
        }

        #[test]
        fn limits_and_boot_time_are_parsed() {
            let text =
                "Limit Soft Hard Units\nMax open files            1024                 524288               files\n";
            assert_eq!(fds_max(text), Some(1024.0));
            assert_eq!(fds_max("Max open files unlimited unlimited files"), Some(f64::INFINITY));
            assert_eq!(fds_max(""), None);
            assert_eq!(boot_seconds("cpu 1 2\nbtime 1700000000\n"), Some(1_700_000_000));
        }
    }
}
