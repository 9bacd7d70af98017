//! What a server has used: processor time and memory of its process and of all that it started, from /proc.
//!
//! `schedstat` counts nanoseconds for each thread, which is finer than the ticks of `stat`. Threads that end
//! during a measurement are lost; the servers here keep theirs.

use std::collections::BTreeMap;
use std::fs;

/// The processes below `root`, and `root` itself.
pub(crate) fn tree(root: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name in parentheses may hold anything; the parent is the second word after it.
        let parent = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = vec![root];
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        found.extend(children.get(pid).into_iter().flatten());
        next += 1;
    }
    found
}

/// Nanoseconds of processor time that the threads of `root` and its descendants have had.
pub(crate) fn cpu_nanos(root: u32) -> u64 {
    tree(root)
        .into_iter()
        .filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok())
        .flatten()
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|line| line.split(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// KiB that `root` and its descendants have in memory; what they share counts once.
pub(crate) fn memory_kib(root: u32) -> u64 {
    let of = |pid: u32, names: &[&str]| -> u64 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let fields = status.lines().filter_map(|line| line.split_once(':'));
        fields
            .filter(|(name, _)| names.contains(name))
            .filter_map(|(_, value)| value.split_whitespace().next()?.parse::<u64>().ok())
            .sum()
    };
    let processes = tree(root);
    let own: u64 = processes.iter().map(|pid| of(*pid, &["RssAnon"])).sum();
    let shared = processes.iter().map(|pid| of(*pid, &["RssFile", "RssShmem"]));
    own + shared.max().unwrap_or(0)
}
