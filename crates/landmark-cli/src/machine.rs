//! What the operating system says about this process.

/// The most memory that this process has held at once, in bytes; `None` where the system does not say (it does on
/// Linux).
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_os = "linux")]
    fn memory_is_counted_in_bytes() {
        let before = super::peak_memory().unwrap();
        let taken = std::hint::black_box(vec![1u8; 32 << 20]);
        assert!(before > 1 << 20 && super::peak_memory().unwrap() > taken.len() as u64);
    }
}
