//! Many at once, the end, and what ends the server.

use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::support::{Client, World, post, small, wait_until};
use crate::server::guard::Limits;

const WAIT: &str = "GET /wait HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\n\r\n";

/// So many requests, all being handled.
fn ask_to_wait(world: &World, count: usize) -> Vec<Client> {
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
fn thousands_of_idle_connections_keep_nobody_out() {
    allow_many_files();
    for limit in [4096, 500] {
        let world = World::new(Limits { connections: limit, ..small() });
        let mut idle: Vec<Client> = (0..2000).map(|_| world.connect()).collect();
        for client in idle.iter_mut().skip(1500).step_by(3) {
            client.send("GET /health HTTP/1.1\r\n");
        }
        for _ in 0..20 {
            world.is_well();
        }
        if limit == 500 {
            for index in [1, 700, 1400] {
                idle[index].reply().refuses(503, "an old one");
            }
        }
        // Whoever is still there is still served.
        let youngest = idle.last_mut().expect("many");
        youngest.send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(youngest.reply().status, 200);
    }
}

#[test]
fn when_all_connections_work_a_new_one_is_told_to_come_again() {
    let world = World::new(Limits { connections: 4, ..small() });
    let mut working = ask_to_wait(&world, 4);
    for _ in 0..10 {
        let reply = world.get("/health");
        reply.refuses(503, "the fifth");
        assert_eq!(reply.headers["retry-after"], "1");
    }
    world.service.release();
    for client in &mut working {
        assert_eq!(client.reply().status, 200);
    }
    wait_until("room", || world.get("/health").status == 200);
}

#[test]
fn when_all_threads_work_requests_queue_and_light_ones_do_not() {
    let world = World::new(Limits { queue: 2, queue_timeout: Duration::from_secs(10), ..small() });
    let mut working = ask_to_wait(&world, 4);
    let mut others: Vec<Client> = (0..5).map(|_| world.connect()).collect();
    for client in &mut others {
        client.send(post("/echo", ""));
        client.stream.set_nonblocking(true).expect("a mode");
    }
    let mut refused = Vec::new();
    wait_until("all but two to be refused", || {
        refused.extend(others.extract_if(.., |client| client.stream.peek(&mut [0]).is_ok()));
        refused.len() == 3
    });
    for client in refused.iter_mut().chain(&mut others) {
        client.stream.set_nonblocking(false).expect("a mode");
    }
    for client in &mut refused {
        client.reply().refuses(503, "a full queue");
    }
    let started = Instant::now();
    assert_eq!(world.get("/health").status, 200);
    assert!(started.elapsed() < Duration::from_secs(1));
    world.service.release();
    assert!(working.iter_mut().chain(&mut others).all(|client| client.reply().status == 200));
}

#[test]
fn every_thread_is_reached() {
    for blocking_threads in [1, 3, 4, 5, 8, 9, 64] {
        let world = World::new(Limits { blocking_threads, ..small() });
        let mut working = ask_to_wait(&world, blocking_threads);
        world.service.release();
        assert!(working.iter_mut().all(|client| client.reply().status == 200), "{blocking_threads}");
    }
}

#[test]
fn a_request_that_waits_too_long_for_a_thread_is_told_to_come_again() {
    let world = World::new(Limits { blocking_threads: 1, queue_timeout: Duration::from_millis(200), ..small() });
    let mut working = world.connect();
    working.send(WAIT);
    world.service.wait_for_waiting(1);
    world.get("/echo").refuses(503, "a long queue");
    world.service.release();
    assert_eq!(working.reply().status, 200);
}

#[test]
fn large_bodies_share_a_budget_that_small_ones_do_not_need() {
    let world = World::new(Limits { total_body_timeout: Duration::from_millis(200), ..small() });
    let mut large = world.connect();
    large.send(post("/wait", "Content-Length: 1048576\r\n"));
    large.send(vec![b'a'; 1 << 20]);
    world.service.wait_for_waiting(1);
    for headers in ["Content-Length: 1048576\r\n", "Transfer-Encoding: chunked\r\n"] {
        let mut other = world.connect();
        other.send(post("/echo", headers));
        if headers.starts_with('T') {
            other.send("100000\r\n");
        }
        other.send(vec![b'a'; 1 << 20]);
        other.reply().refuses(503, headers);
    }
    let small = format!("{}{}", post("/echo", "Content-Length: 60000\r\n"), "a".repeat(60_000));
    assert_eq!(world.ask(small).status, 200);
    world.service.release();
    assert_eq!(large.reply().status, 200);
    let again = format!("{}{}", post("/echo", "Content-Length: 1048576\r\n"), "a".repeat(1 << 20));
    wait_until("the budget to be given back", || world.ask(&again).status == 200);
}

#[test]
fn large_total_body_timeout_for_each_other() {
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
fn stopping_lets_requests_finish_and_sends_idle_clients_away() {
    let world = World::new(small());
    let (mut idle, mut begun, mut working) = (world.connect(), world.connect(), world.connect());
    begun.send("GET /health HTTP/1.1\r\nHo");
    working.send(WAIT);
    world.service.wait_for_waiting(1);
    let World { server, service, address, listener, .. } = world;
    // The test's own handle would keep the socket open.
    drop(listener);
    std::thread::scope(|scope| {
        let stopping = scope.spawn(|| server.stop(Duration::from_secs(10)));
        let started = Instant::now();
        idle.reply().refuses(503, "an idle client");
        begun.reply().refuses(503, "a client that has begun");
        wait_until("the socket to close", || TcpStream::connect(address).is_err());
        assert!(started.elapsed() < Duration::from_secs(2) && !stopping.is_finished());
        service.release();
        assert_eq!(working.reply().status, 200);
        assert!(stopping.join().expect("no panic"), "all requests were finished");
    });
    assert!(server.stop(Duration::ZERO), "stopping again does nothing");
}

#[test]
fn stopping_does_not_wait_for_ever() {
    let world = World::new(small());
    let mut working = world.connect();
    working.send(WAIT);
    world.service.wait_for_waiting(1);
    let started = Instant::now();
    assert!(!world.server.stop(Duration::from_millis(200)));
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert!(working.stream.peek(&mut [0]).is_ok_and(|read| read == 0), "the connection has ended");
    world.service.release();
}

#[test]
fn a_stopped_server_leaves_no_threads() {
    let world = World::new(small());
    assert_eq!(world.get("/echo").status, 200);
    // Each thread that handles requests holds the service.
    assert!(Arc::strong_count(&world.service) >= 7);
    assert!(world.server.stop(Duration::from_secs(5)));
    let World { server, service, .. } = world;
    drop(server);
    wait_until("the threads to end", || Arc::strong_count(&service) == 1);
}

#[test]
fn an_end_of_accepting_is_told() {
    let world = World::new(small());
    let failed = world.failed.lock().expect("no panic");
    assert!(failed.try_recv().is_err());
    // What a broken socket looks like to the one who accepts.
    let socket = TcpStream::from(OwnedFd::from(world.listener.try_clone().expect("a socket")));
    socket.shutdown(std::net::Shutdown::Both).expect("a shut socket");
    let error = failed.recv_timeout(Duration::from_secs(5)).expect("it is told");
    assert!(error.to_string().contains("cannot accept connections"), "{error}");
    assert_eq!(world.service.handled.load(Ordering::SeqCst), 0);
}
