//! A temporary folder that goes away with its owner, and ports that are free.

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug)]
pub struct TempDir(PathBuf);

impl Default for TempDir {
    fn default() -> Self {
        Self::new()
    }
}

impl TempDir {
    pub fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("weft-test-{}-{n}", std::process::id()));
        // A leftover of a killed process with the same id.
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("temporary folder");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes by rename, as rotation in production does: a reader sees the old file or the new one, never half.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        write_atomic(&path, content);
        path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn write_atomic(path: &Path, content: impl AsRef<[u8]>) {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().and_then(|n| n.to_str()).expect("a file name");
    let temporary = path.with_file_name(format!(".{name}.{n}"));
    std::fs::write(&temporary, content).expect("write");
    std::fs::rename(&temporary, path).expect("rename");
}

/// A TCP port nobody listens on, on either family, and that this process was not given before.
///
/// The port lies below the kernel's ephemeral range, so an outgoing connection of some other test cannot take it
/// between this check and the bind by the process under test; what is left is another test process choosing the same
/// one at the same instant. `Proxy::start` says so when its process ends before it is ready.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    let low: u16 = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|s| s.split_whitespace().next()?.parse().ok())
        .unwrap_or(32768);
    let span = u32::from(low.saturating_sub(12_000).max(1000));
    let mut given = GIVEN.lock().expect("ports");
    let given = given.get_or_insert_with(HashSet::new);
    // Processes start at different places, so two that run at once rarely meet.
    let start = std::process::id().wrapping_mul(7919);
    for step in 0..span {
        let port = 12_000 + ((start.wrapping_add(step)) % span) as u16;
        if given.contains(&port) || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_err() {
            continue;
        }
        if let Err(e) = TcpListener::bind((Ipv6Addr::LOCALHOST, port))
            && e.kind() == std::io::ErrorKind::AddrInUse
        {
            continue;
        }
        given.insert(port);
        return port;
    }
    panic!("no free port");
}

/// `127.0.0.1` with a free port.
pub fn free_addr() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, free_port()).into()
}
