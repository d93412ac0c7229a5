//! What happens to connections before and beside HTTP: detection, bytes, modes of mTLS, limits, drain. Real sockets.

#![allow(clippy::unwrap_used)]

mod sidecars;

use sidecars::{BIN, Setup, identity, start};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};
use weft_testkit::ca::Ca;
use weft_testkit::dir::{TempDir, free_addr};
use weft_testkit::proxy::{Proxy, Start};

const LIMIT: Duration = Duration::from_secs(20);

/// An app that says `greeting`, gives back what it gets, and says `bye` at its client's end.
fn app(greeting: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            thread::spawn(move || {
                let _ = socket.write_all(greeting);
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(n) = socket.read(&mut buffer) {
                    if n == 0 {
                        let _ = socket.write_all(b"bye");
                        return;
                    }
                    if socket.write_all(&buffer[..n]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    addr
}

fn dial(addr: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(addr).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}

fn expect(socket: &mut TcpStream, bytes: &[u8]) {
    let mut got = vec![0; bytes.len()];
    socket.read_exact(&mut got).unwrap();
    assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(bytes));
}

/// Nothing more came, and the connection is over.
fn is_over(socket: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    match socket.read_to_end(&mut rest) {
        Ok(_) => rest.is_empty(),
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

fn undeclared(app: SocketAddr, more: &str) -> (Proxy, SocketAddr) {
    let (addr, admin) = (free_addr(), free_addr());
    let yaml = format!(
        "admin: {admin}\nlisteners:\n- {{name: in, role: inbound, address: {addr}, app: {app}, mtls: disable{more}}}\n"
    );
    (start(&yaml, admin), addr)
}

#[test]
fn bytes_pass_with_each_directions_own_end() {
    let fronts = sidecars::fronts(app(b""), Setup { tcp: true, ..Setup::default() });
    for front in &fronts {
        let mut socket = dial(front.addr);
        socket.write_all(b"one").unwrap();
        expect(&mut socket, b"one");
        socket.shutdown(Shutdown::Write).unwrap();
        expect(&mut socket, b"bye");
        assert!(is_over(&mut socket), "{}", front.name);

        let sent: Vec<u8> = (0..8u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut reader = dial(front.addr);
        let mut writer = reader.try_clone().unwrap();
        let bulk = sent.clone();
        let writing = thread::spawn(move || {
            writer.write_all(&bulk).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        writing.join().unwrap();
        assert!(got.strip_suffix(b"bye") == Some(&sent), "{}: {} bytes", front.name, got.len());
    }
}

#[test]
fn a_break_is_passed_on_as_a_break() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            let _ = socket.read(&mut [0; 16]);
            let tokio = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
            socket.set_nonblocking(true).unwrap();
            let _in = tokio.enter();
            tokio::net::TcpStream::from_std(socket).unwrap().set_zero_linger().unwrap();
        }
    });
    let front = sidecars::hop(addr, Setup { tcp: true, ..Setup::default() });
    let mut socket = dial(front.addr);
    socket.write_all(b"x").unwrap();
    let error = socket.read(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_server_may_speak_first_and_is_remembered() {
    let (_proxy, addr) = undeclared(app(b"220 hi\r\n"), "");
    for round in 0..2 {
        let began = Instant::now();
        let mut socket = dial(addr);
        expect(&mut socket, b"220 hi\r\n");
        socket.write_all(b"HELO me\r\n").unwrap();
        expect(&mut socket, b"HELO me\r\n");
        assert!(began.elapsed() < Duration::from_secs(5), "{round}: {:?}", began.elapsed());
    }
}

#[test]
fn slow_first_bytes_hold_nobody_up_and_are_passed_on() {
    let (proxy, addr) = undeclared(app(b""), "");
    let mut slow: Vec<_> = (0..100).map(|_| dial(addr)).collect();
    for socket in &mut slow {
        // Could become a request's first line for as long as nothing follows.
        socket.write_all(b"GE").unwrap();
    }
    let began = Instant::now();
    let mut quick = dial(addr);
    quick.write_all(b"\x00\x01bytes").unwrap();
    expect(&mut quick, b"\x00\x01bytes");
    assert!(began.elapsed() < Duration::from_secs(5));
    for socket in &mut slow {
        expect(socket, b"GE");
    }
    proxy.wait_metric("weft_tcp_detect_timeout_total", &[], 100.0, LIMIT);
}

#[test]
fn http_is_told_apart_wherever_its_first_line_is_cut() {
    let (_proxy, addr) = undeclared(app(b""), "");
    let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    for cut in [1, 3, 4, 5, 14, 20] {
        let mut socket = dial(addr);
        socket.set_nodelay(true).unwrap();
        socket.write_all(&request[..cut]).unwrap();
        thread::yield_now();
        socket.write_all(&request[cut..]).unwrap();
        // The app does not speak HTTP, so it is the proxy that answers; opaque bytes would come back as they are.
        expect(&mut socket, b"HTTP/1.1 502");
    }
}

#[test]
fn strict_resets_plaintext_and_reaches_open_connections() {
    let files = TempDir::new();
    let ca = Ca::new("cluster.local");
    let (addr, admin) = (free_addr(), free_addr());
    let app = app(b"220 hi\r\n");
    let yaml = |mode: &str| {
        format!(
            "admin: {admin}\n{}listeners:\n- {{name: in, role: inbound, address: {addr}, app: {app}, mtls: {mode}}}\n",
            identity(&ca, &files, "app")
        )
    };
    let proxy = start(&yaml("permissive"), admin);
    let mut open = dial(addr);
    expect(&mut open, b"220 hi\r\n");
    proxy.reconfigure(&yaml("strict"));
    proxy.sighup();
    let began = Instant::now();
    assert!(is_over(&mut open));
    assert!(began.elapsed() < Duration::from_secs(10));

    let mut late = dial(addr);
    late.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    assert_eq!(late.read(&mut [0; 16]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    proxy.wait_metric("weft_tcp_rejected_total", &[("reason", "plaintext")], 1.0, LIMIT);
    proxy.wait_metric("weft_tcp_rejected_total", &[("reason", "policy")], 1.0, LIMIT);
}

#[test]
fn too_many_connections_are_turned_away_and_room_is_found_again() {
    let (proxy, addr) = undeclared(app(b""), ", protocol: tcp, limits: {maxConnections: 3}");
    let mut held: Vec<_> = (0..3).map(|_| dial(addr)).collect();
    for socket in &mut held {
        socket.write_all(b"x").unwrap();
        expect(socket, b"x");
    }
    assert!(is_over(&mut dial(addr)));
    proxy.wait_metric("weft_tcp_rejected_total", &[("reason", "max_connections")], 1.0, LIMIT);
    held.clear();
    let found = weft_testkit::wait::poll(LIMIT, || {
        let mut socket = dial(addr);
        socket.write_all(b"x").ok()?;
        socket.read_exact(&mut [0; 1]).ok()
    });
    assert!(found.is_some());
}

#[test]
fn listeners_come_go_and_stay() {
    let app = app(b"");
    let (a, b, c, admin) = (free_addr(), free_addr(), free_addr(), free_addr());
    let yaml = |list: &[SocketAddr]| {
        let listeners: String = list
            .iter()
            .map(|addr| format!("- {{name: p{}, role: tcp-out, address: {addr}, to: app}}\n", addr.port()))
            .collect();
        format!(
            "admin: {admin}\nworkers: 2\nlisteners:\n{listeners}services:\n- name: app\n  port: 80\n  endpoints: [\"{app}\"]\n"
        )
    };
    let proxy = start(&yaml(&[a, b]), admin);
    let mut stays = dial(a);
    let mut goes = dial(b);
    for socket in [&mut stays, &mut goes] {
        socket.write_all(b"x").unwrap();
        expect(socket, b"x");
    }
    proxy.reconfigure(&yaml(&[a, c]));
    proxy.sighup();
    assert!(is_over(&mut goes));
    weft_testkit::wait::until("the old port closed", LIMIT, || TcpStream::connect(b).is_err());
    weft_testkit::wait::until("the new port open", LIMIT, || TcpStream::connect(c).is_ok());
    stays.write_all(b"y").unwrap();
    expect(&mut stays, b"y");
}

#[test]
fn a_drain_finishes_what_it_can_and_tells_what_it_cut() {
    for (cut, code) in [(false, 0), (true, 3)] {
        let (mut proxy, addr) = undeclared(app(b""), ", protocol: tcp, limits: {drain: 3s, drainDelay: 100ms}");
        let mut held = dial(addr);
        held.write_all(b"x").unwrap();
        expect(&mut held, b"x");
        proxy.sigterm();
        weft_testkit::wait::until("the port closed", LIMIT, || TcpStream::connect(addr).is_err());
        held.write_all(b"y").unwrap();
        expect(&mut held, b"y");
        if !cut {
            held.shutdown(Shutdown::Write).unwrap();
            expect(&mut held, b"bye");
        }
        assert_eq!(proxy.wait_exit(LIMIT).code(), Some(code));
        assert!(is_over(&mut held));
    }
}

/// F-27: out of descriptors the proxy waits, without spinning, and recovers.
#[test]
fn survives_running_out_of_descriptors() {
    let app = app(b"");
    let (addr, admin) = (free_addr(), free_addr());
    let yaml = format!(
        "listeners:\n- {{name: in, role: inbound, address: {addr}, app: {app}, mtls: disable, protocol: tcp}}\n"
    );
    let dir = TempDir::new();
    let limited = dir.write("limited", format!("#!/bin/sh\nulimit -n 64\nexec {BIN} \"$@\"\n"));
    std::fs::set_permissions(&limited, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let yaml = format!("admin: {admin}\n{yaml}");
    let bin = limited.to_string_lossy();
    let proxy = Proxy::with(Start { bin: &bin, yaml: &yaml, admin: Some(admin), ..Start::default() });
    let crowd: Vec<_> = (0..120).map(|_| dial(addr)).collect();
    proxy.wait_log(|line| line.contains("cannot accept"), LIMIT);
    let before = proxy.cpu();
    let began = Instant::now();
    weft_testkit::wait::until("a while", LIMIT, || began.elapsed() > Duration::from_secs(1));
    assert!(proxy.cpu() - before < Duration::from_millis(300), "it spins");
    drop(crowd);
    let found = weft_testkit::wait::poll(LIMIT, || {
        let mut socket = dial(addr);
        socket.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        socket.write_all(b"x").ok()?;
        socket.read_exact(&mut [0; 1]).ok()
    });
    assert!(found.is_some());
}
