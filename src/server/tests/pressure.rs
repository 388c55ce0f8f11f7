//! Many connections and requests at once, stopping, and failures of the server.

use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::support::{Client, DEADLINE, World, post, small, wait_until};
use crate::server::guard::Limits;

const WAIT: &str = "GET /wait HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\n\r\n";

/// This many requests, all being handled.
fn busy_requests(world: &World, count: usize) -> Vec<Client> {
    let mut clients: Vec<Client> = (0..count).map(|_| world.connect()).collect();
    for client in &mut clients {
        client.send(WAIT);
    }
    world.service.wait_for_waiting(count);
    clients
}

/// Both ends of the connections are in this process.
fn allow_many_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(10_000, |maximum| maximum.min(10_000));
    if current.is_some_and(|current| current < wanted) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }).expect("more files");
    }
    assert!(wanted >= 5000, "this test needs 5000 open files, and the limit is {wanted}");
}

#[test]
fn thousands_of_idle_connections_do_not_lock_out_others() {
    allow_many_files();
    for limit in [4096, 500] {
        let world = World::new(Limits { connections: limit, ..small() });
        let mut idle: Vec<Client> = (0..2000).map(|_| world.connect()).collect();
        for client in idle.iter_mut().skip(1500).step_by(3) {
            client.send("GET /health HTTP/1.1\r\n");
        }
        for _ in 0..20 {
            world.assert_healthy();
        }
        if limit == 500 {
            for index in [1, 700, 1400] {
                idle[index].reply().assert_error(503, "an evicted one");
            }
        }
        let youngest = idle.last_mut().expect("a connection");
        youngest.send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(youngest.reply().status, 200);
    }
}

#[test]
fn requests_are_rejected_when_all_places_are_taken_and_probes_are_not() {
    let world = World::new(Limits { connections: 4, ..small() });
    let mut busy = busy_requests(&world, 3);
    for _ in 0..10 {
        let reply = world.get("/echo");
        reply.assert_error(503, "the fourth");
        assert_eq!(reply.headers["retry-after"], "1");
        assert_eq!(world.get("/health").status, 200);
        assert_eq!(world.get("/fast").status, 200);
    }
    world.service.release();
    for client in &mut busy {
        assert_eq!(client.reply().status, 200);
    }
    wait_until("a free place", || world.get("/echo").status == 200);
}

#[test]
fn one_client_leaves_places_threads_and_memory_for_others() {
    let world = World::new(Limits { connections: 10, total_bytes_timeout: Duration::from_millis(200), ..small() });
    let request = format!("{}{}", post("/wait", "Content-Length: 1048576\r\n"), "a".repeat(1 << 20));
    let slow_body = post("/echo", "Content-Length: 1000\r\n");
    // All places that one client may have: one request that is handled, and bodies that do not arrive.
    let mut clients: Vec<Client> = (0..6).map(|_| world.connect_from(2)).collect();
    clients[0].send(&request);
    world.service.wait_for_waiting(1);
    clients[1].send(&request);
    clients[1].reply().assert_error(503, "the memory of one client");
    for client in &mut clients[2..] {
        client.send(&slow_body);
    }
    let mut more: Vec<Client> = (0..20).map(|_| world.connect_from(2)).collect();
    for client in &mut more {
        client.send(&slow_body);
    }
    let rejected = |client: &mut Client| {
        client.stream.set_nonblocking(true).expect("a mode");
        client.stream.peek(&mut [0]).is_ok()
    };
    wait_until("the places of one client to be taken", || {
        more.iter_mut().filter_map(|c| rejected(c).then_some(())).count() >= 18
    });
    let mut other = world.connect_from(3);
    other.send(&request);
    world.service.wait_for_waiting(2);
    world.service.release();
    assert_eq!(other.reply().status, 200);
    assert_eq!(clients[0].reply().status, 200);
}

#[test]
fn requests_queue_when_all_threads_are_busy_and_fast_ones_do_not() {
    let world = World::new(Limits { queue: 2, queue_timeout: DEADLINE, ..small() });
    let mut busy = busy_requests(&world, 4);
    let mut others: Vec<Client> = (0..5).map(|_| world.connect()).collect();
    for client in &mut others {
        client.send(post("/echo", ""));
        client.stream.set_nonblocking(true).expect("a mode");
    }
    let mut rejected = Vec::new();
    wait_until("all but two to be rejected", || {
        rejected.extend(others.extract_if(.., |client| client.stream.peek(&mut [0]).is_ok()));
        rejected.len() == 3
    });
    for client in rejected.iter_mut().chain(&mut others) {
        client.stream.set_nonblocking(false).expect("a mode");
    }
    for client in &mut rejected {
        client.reply().assert_error(503, "a full queue");
    }
    assert_eq!(world.get("/fast").status, 200);
    world.service.release();
    assert!(busy.iter_mut().chain(&mut others).all(|client| client.reply().status == 200));
}

#[test]
fn every_thread_handles_requests() {
    for blocking_threads in [1, 3, 4, 5, 8, 9, 64] {
        let world = World::new(Limits { blocking_threads, ..small() });
        let mut busy = busy_requests(&world, blocking_threads);
        world.service.release();
        assert!(busy.iter_mut().all(|client| client.reply().status == 200), "{blocking_threads}");
    }
}

#[test]
fn request_that_waits_too_long_for_a_thread_is_rejected() {
    let world = World::new(Limits { blocking_threads: 1, queue_timeout: Duration::from_millis(200), ..small() });
    let mut busy = world.connect();
    busy.send(WAIT);
    world.service.wait_for_waiting(1);
    world.get("/echo").assert_error(503, "a long queue");
    world.service.release();
    assert_eq!(busy.reply().status, 200);
}

#[test]
fn large_bodies_share_a_budget_and_small_ones_need_none() {
    let world = World::new(Limits { total_bytes_timeout: Duration::from_millis(200), ..small() });
    let mut large = world.connect_from(2);
    large.send(post("/wait", "Content-Length: 1048576\r\n"));
    large.send(vec![b'a'; 1 << 20]);
    world.service.wait_for_waiting(1);
    for headers in ["Content-Length: 1048576\r\n", "Transfer-Encoding: chunked\r\n"] {
        let mut other = world.connect_from(2);
        other.send(post("/echo", headers));
        if headers.starts_with('T') {
            other.send("100000\r\n");
        }
        other.send(vec![b'a'; 1 << 20]);
        other.reply().assert_error(503, headers);
    }
    let send = |text: &str| {
        let mut client = world.connect_from(2);
        client.send(text);
        client.reply().status
    };
    let request = format!("{}{}", post("/echo", "Content-Length: 60000\r\n"), "a".repeat(60_000));
    assert_eq!(send(&request), 200);
    world.service.release();
    assert_eq!(large.reply().status, 200);
    let again = format!("{}{}", post("/echo", "Content-Length: 1048576\r\n"), "a".repeat(1 << 20));
    wait_until("the budget to be returned", || send(&again) == 200);
}

#[test]
fn large_bodies_wait_for_each_other() {
    let world = World::new(small());
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let world = &world;
            scope.spawn(move || {
                let mut client = world.connect();
                if thread % 2 == 0 {
                    client.send(post("/echo", "Content-Length: 1000000\r\n"));
                    client.send(vec![b'a'; 1_000_000]);
                } else {
                    client.send(post("/echo", "Transfer-Encoding: chunked\r\n"));
                    client.send(format!("{:x}\r\n{}\r\n0\r\n\r\n", 1_000_000, "a".repeat(1_000_000)));
                }
                assert_eq!(client.reply().json()["length"], 1_000_000);
            });
        }
    });
}

#[test]
fn stopping_drains_busy_connections_and_closes_idle_ones() {
    let world = World::new(small());
    let (mut idle, mut incomplete, mut busy) = (world.connect(), world.connect(), world.connect());
    incomplete.send("GET /health HTTP/1.1\r\nHo");
    busy.send(WAIT);
    world.service.wait_for_waiting(1);
    let World { guard, service, address, listener, .. } = world;
    // Otherwise the test keeps the socket open.
    drop(listener);
    std::thread::scope(|scope| {
        let stopping = scope.spawn(|| guard.stop(DEADLINE));
        idle.reply().assert_error(503, "an idle client");
        incomplete.reply().assert_error(503, "a client that has sent a part of its head");
        wait_until("the socket to close", || TcpStream::connect(address).is_err());
        assert!(!stopping.is_finished());
        service.release();
        assert_eq!(busy.reply().status, 200);
        assert!(stopping.join().expect("no panic"), "all requests have ended");
    });
    assert!(guard.stop(Duration::ZERO), "stopping again does nothing");
}

#[test]
fn stopping_gives_up_after_its_timeout() {
    let world = World::new(small());
    let mut busy = world.connect();
    busy.send(WAIT);
    world.service.wait_for_waiting(1);
    assert!(!world.guard.stop(Duration::from_millis(200)));
    assert!(busy.stream.peek(&mut [0]).is_ok_and(|read| read == 0), "the connection has ended");
    world.service.release();
}

#[test]
fn stopped_server_leaves_no_threads() {
    let world = World::new(small());
    assert_eq!(world.get("/echo").status, 200);
    // Each thread that handles requests holds the service.
    assert!(Arc::strong_count(&world.service) >= 7);
    assert!(world.guard.stop(DEADLINE));
    let World { guard, service, .. } = world;
    drop(guard);
    wait_until("the threads to end", || Arc::strong_count(&service) == 1);
}

#[test]
fn fatal_accept_error_is_reported() {
    let world = World::new(small());
    let failed = world.failed.lock().expect("no panic");
    assert!(failed.try_recv().is_err());
    // accept(2) fails as with an unusable socket.
    let socket = TcpStream::from(OwnedFd::from(world.listener.try_clone().expect("a socket")));
    socket.shutdown(std::net::Shutdown::Both).expect("a shut socket");
    let error = failed.recv_timeout(DEADLINE).expect("a report");
    assert!(error.to_string().contains("cannot accept connections"), "{error}");
    assert_eq!(world.service.handled.load(Ordering::SeqCst), 0);
}
