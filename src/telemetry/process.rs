//! How the process stands in the operating system's eyes, under the names that Prometheus' client libraries share.
//!
//! Read from `/proc` (proc(5)), so on Linux only; elsewhere nothing is shown.

use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

/// The `process_*` metrics of this moment.
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

    /// What is not readable is left out.
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
                "Seconds of processor time used, in user and system mode",
                ConstCounter::new(stat.cpu_ticks as f64 / ticks),
            );
            now.register(
                "process_resident_memory_bytes",
                "Bytes of memory that are resident",
                ConstGauge::new(stat.resident_pages as f64 * page),
            );
            now.register(
                "process_virtual_memory_bytes",
                "Bytes of address space",
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
                    "When the process started, in seconds since 1970",
                    ConstGauge::new(boot as f64 + stat.start_ticks as f64 / ticks),
                );
            }
        }
        if let Ok(descriptors) = fs::read_dir("/proc/self/fd") {
            now.register(
                "process_open_fds",
                "File descriptors that are open",
                // The listing itself has one.
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
                "Most file descriptors that may be open",
                ConstGauge::new(most),
            );
        }
    }

    /// What of `/proc/self/stat` is of interest.
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
            // The name of the program, in parentheses, may hold anything.
            let (_, rest) = text.rsplit_once(')')?;
            // proc(5) counts from 1 and begins with the process id and the name.
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

    /// The soft limit; none counts as infinitely many.
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
        fn a_programs_name_may_hold_anything() {
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
        fn limits_are_read() {
            let text =
                "Limit Soft Hard Units\nMax open files            1024                 524288               files\n";
            assert_eq!(fds_max(text), Some(1024.0));
            assert_eq!(fds_max("Max open files unlimited unlimited files"), Some(f64::INFINITY));
            assert_eq!(fds_max(""), None);
            assert_eq!(boot_seconds("cpu 1 2\nbtime 1700000000\n"), Some(1_700_000_000));
        }
    }
}
