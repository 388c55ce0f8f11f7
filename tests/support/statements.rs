//! Stands for the database of a foreign sidecar: executes the statements that it sends, one a line.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

use postgres::Client;

use super::World;

/// A listener that Pods can reach.
pub struct StatementServer {
    /// A database URL with its address.
    pub url: String,
}

impl StatementServer {
    /// Executes statements in the schema of a test.
    pub fn start(world: &World) -> Self {
        let listener = TcpListener::bind("0.0.0.0:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let mut client = world.schema.connect();
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                execute(&mut client, &connection.expect("a connection"));
            }
        });
        Self {
            url: format!("postgresql://sidecar:of-the-test@{}:{port}/results?sslmode=disable", world.setup.pod_host),
        }
    }
}

fn execute(client: &mut Client, mut connection: &TcpStream) {
    let mut statement = String::new();
    // A container that is killed may send nothing.
    if BufReader::new(connection).read_line(&mut statement).is_err() || statement.is_empty() {
        return;
    }
    if let Err(error) = client.batch_execute(&statement) {
        writeln!(connection, "{statement}: {error}").ok();
    }
}
