//! The keeper: the process between the server and those who use it.
//!
//! It is the parent of the server, starts it anew when it dies, and stops it when nobody holds the lock of the users any
//! more. It holds a lock of its own from before it is born until it has ended: the file is its standard input, locked by
//! who started it, so that there is never a moment in which two could come up, or one that nobody sees.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::account::Account;
use super::binaries::{Installed, Search, major};
use super::fault;
use super::home::{ServerDirectory, broken, open};
use super::server::{Recipe, Server, has_other_clients};
use super::word::Word;
use crate::failure::{Class, Failure};

/// How often the lock is tried again while it is clients without the lock that keep the server: each time they are
/// counted with a connection …
const CLIENTS: Duration = Duration::from_secs(1);
/// … and while it is a file alone.
const LINGERING: Duration = Duration::from_millis(100);

/// A server that lived shorter has not really come up …
const SHORT_LIFE: Duration = Duration::from_secs(10);
/// … and after so many of them in a row it is given up.
const SHORT_LIVES: u32 = 5;

/// What a keeper waits for.
pub(super) enum Event {
    /// Nobody holds the lock of the users, and nobody gets it until this is answered with the time to the next look.
    Unused(Sender<Duration>),
    /// The server with this process id has ended.
    Ended(Pid),
    /// Somebody wants the keeper to end.
    Told,
}

/// Keeps the server of this state directory until nobody uses it. Is of use only as [`spawn`](super::spawn) starts it.
pub fn hold(state: &Path, binaries: PathBuf) -> Result<(), Failure> {
    let home = ServerDirectory::new(state, Search::default());
    let own = own_lock(&home)?;
    // Not to be hit by what is meant for whoever started it: Ctrl-C, the end of a terminal. It fails for a leader of a
    // process group, which is safe, too.
    rustix::process::setsid().ok();
    let word = |word: Word| word.write(&own).ok();
    word(Word::Starting);
    let major = major(&binaries).unwrap_or_default();
    let account = Account::of(&home.data());
    let installed = Installed { folder: binaries, major };
    let result = Keeper::new(Recipe { home, installed, account }).and_then(|keeper| keeper.run(&own));
    match &result {
        Ok(()) => word(Word::Stopping),
        Err(failure) => word(Word::failed(failure)),
    };
    // Before the lock of the users goes: who gets that one finds no keeper any more.
    flock(&own, FlockOperation::Unlock).ok();
    result
}

/// The lock that this process was started with.
fn own_lock(home: &ServerDirectory) -> Result<File, Failure> {
    let misused = || Failure::new(Class::Usage, "this command is syncctl's own: it is started with the database");
    let own = std::io::stdin().as_fd().try_clone_to_owned().map(File::from).map_err(|_| misused())?;
    let identity = |file: std::fs::Metadata| (file.dev(), file.ino());
    let given = own.metadata().map(identity).ok();
    let kept = std::fs::metadata(home.keeper_lock()).map(identity).ok();
    if given.is_none() || given != kept || flock(&own, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Err(misused());
    }
    Ok(own)
}

struct Keeper {
    recipe: Recipe,
    events: Receiver<Event>,
    sender: Sender<Event>,
    short_lives: u32,
}

impl Keeper {
    fn new(recipe: Recipe) -> Result<Self, Failure> {
        let (sender, events) = channel();
        let users = open(&recipe.home.users_lock())?;
        wait_for_nobody(users, sender.clone());
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])
            .map_err(|error| Failure::new(Class::Internal, format!("listening for signals: {error}")))?;
        let told = sender.clone();
        std::thread::spawn(move || signals.forever().for_each(|_| _ = told.send(Event::Told)));
        Ok(Self { recipe, events, sender, short_lives: 0 })
    }

    fn run(mut self, own: &File) -> Result<(), Failure> {
        let mut server = self.serve(own)?;
        let mut since = Instant::now();
        loop {
            let Ok(event) = self.events.recv() else { unreachable!("a sender of them is held here") };
            match event {
                Event::Unused(again) => match self.stays() {
                    Some(pause) => _ = again.send(pause),
                    // The lock of the users is held until this process has ended.
                    None => break,
                },
                Event::Told => break,
                Event::Ended(pid) if pid == server.pid() => {
                    self.count_life(since.elapsed())?;
                    Word::Starting.write(own).ok();
                    // Takes the status of the old one.
                    server.stop();
                    server = self.serve(own)?;
                    since = Instant::now();
                }
                Event::Ended(_) => {}
            }
        }
        Word::Stopping.write(own).ok();
        server.stop();
        self.recipe.home.stop_lingering();
        self.recipe.home.clear_socket_folder(self.recipe.account.as_ref())
    }

    fn serve(&self, own: &File) -> Result<Server, Failure> {
        let server = self.recipe.serve()?;
        server.watch(self.sender.clone());
        let word = Word::Ready { binaries: self.recipe.installed.folder.clone() };
        word.write(own).map_err(|error| broken("writing", &self.recipe.home.keeper_lock(), &error))?;
        Ok(server)
    }

    /// How long the server stays at least, though nobody holds the lock of the users.
    fn stays(&self) -> Option<Duration> {
        if self.recipe.home.is_lingering() {
            return Some(LINGERING);
        }
        has_other_clients(&self.recipe.home).then_some(CLIENTS)
    }

    fn count_life(&mut self, life: Duration) -> Result<(), Failure> {
        self.short_lives = if life < SHORT_LIFE { self.short_lives + 1 } else { 0 };
        if self.short_lives < SHORT_LIVES {
            return Ok(());
        }
        let log = self.recipe.home.log();
        Err(fault(
            format!("the server of the embedded database ended {SHORT_LIVES} times within seconds of its start"),
            &format!("see {}", log.display()),
        ))
    }
}

/// Tells each time that nobody holds the lock, holding it meanwhile.
fn wait_for_nobody(users: File, events: Sender<Event>) {
    std::thread::spawn(move || {
        loop {
            // A signal may interrupt it.
            if users.lock().is_err() {
                std::thread::sleep(CLIENTS);
                continue;
            }
            let (again, answer) = channel();
            let pause = events.send(Event::Unused(again)).ok().and_then(|()| answer.recv().ok());
            let Some(pause) = pause else {
                // The process ends, and the lock with it.
                loop {
                    std::thread::park();
                }
            };
            users.unlock().ok();
            std::thread::sleep(pause);
        }
    });
}
