//! PostgreSQL servers for tests: started from the installed binaries, as an unprivileged user, on a free port,
//! in a temporary folder; gone with this process, however it ends.
//!
//! Without binaries the tests that need them are skipped, loudly; where `VAUCHI_TEST_POSTGRES=required` is
//! set, as `.ci/run` does, they fail.

use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, Mutex, OnceLock};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, Row as _};

/// The oldest server that the relay supports.
const VERSION_MIN: u32 = 15;

/// Who runs the server when the tests run as root, which PostgreSQL refuses.
const UNPRIVILEGED: [&str; 2] = ["postgres", "nobody"];

/// A server and its folder.
pub(crate) struct Server {
    folder: PathBuf,
    pub(crate) port: u16,
    binaries: PathBuf,
    /// The shell that runs the server; it stops the server when its input is closed.
    shell: Mutex<Option<Child>>,
}

/// Where the programs of a server are that is new enough, the newest first.
fn binaries() -> Option<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let on_path = std::env::var_os("PATH").unwrap_or_default();
        let mut folders: Vec<PathBuf> = std::env::split_paths(&on_path).collect();
        for root in ["/usr/lib/postgresql", "/usr/local/opt", "/opt/homebrew/opt"] {
            let inside = std::fs::read_dir(root).into_iter().flatten().flatten();
            folders.extend(inside.map(|entry| entry.path().join("bin")));
        }
        folders
            .into_iter()
            .filter(|folder| folder.join("initdb").exists() && folder.join("postgres").exists())
            .filter_map(|folder| Some((version(&folder)?, folder)))
            .filter(|(version, _)| *version >= VERSION_MIN)
            .max()
            .map(|(_, folder)| folder)
    });
    found.as_deref()
}

fn version(folder: &Path) -> Option<u32> {
    let told = Command::new(folder.join("postgres"))
        .arg("-V")
        .output()
        .ok()?;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    told.split_whitespace()
        .find_map(|word| word.split('.').next()?.parse().ok())
}

/// Whether there is a server to test with. Says so once when there is none, and fails where one is required.
#[expect(
    clippy::print_stderr,
    reason = "a skipped test must not look like one that passed"
)]
pub(crate) fn is_there() -> bool {
    static SAID: OnceLock<()> = OnceLock::new();
    if binaries().is_some() {
        return true;
    }
    let required = std::env::var_os("VAUCHI_TEST_POSTGRES").is_some_and(|word| word == "required");
    assert!(
        !required,
        "PostgreSQL {VERSION_MIN} or newer is not installed"
    );
    SAID.get_or_init(|| {
        // Past the test runner, which shows what a test writes only when it fails.
        let line = format!(
            "\n*** SKIPPED: everything about PostgreSQL, because PostgreSQL {VERSION_MIN} or newer is not installed \
             (Debian: apt-get install postgresql) ***\n"
        );
        match std::fs::OpenOptions::new().write(true).open("/dev/stderr") {
            Ok(mut stderr) => drop(std::io::Write::write_all(&mut stderr, line.as_bytes())),
            Err(_) => eprintln!("{line}"),
        }
    });
    false
}

/// The user and group that the server runs as, when it may not be ours.
fn unprivileged() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let user = |name: &str| {
        let mut fields = users
            .lines()
            .find(|line| line.starts_with(&format!("{name}:")))?
            .split(':');
        Some((fields.nth(2)?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    let found = UNPRIVILEGED.into_iter().find_map(user);
    Some(found.expect("a user that may run PostgreSQL"))
}

impl Server {
    /// A new server that has been started.
    pub(crate) fn start(settings: &[(&str, &str)]) -> Self {
        let binaries = binaries().expect("asked before").to_owned();
        let folder = tempfile::Builder::new()
            .prefix("vauchi-pg-")
            .permissions(std::fs::Permissions::from_mode(0o700))
            .tempdir()
            .unwrap();
        // Whoever runs the server removes it: by then this process may have been killed.
        let folder = folder.keep();
        if let Some((user, group)) = unprivileged() {
            std::os::unix::fs::chown(&folder, Some(user), Some(group)).unwrap();
        }
        let server = Self {
            port: free_port(),
            folder,
            binaries,
            shell: Mutex::new(None),
        };
        let data = server.data();
        let made = server
            .command("initdb")
            .args([
                "--no-sync",
                "-A",
                "trust",
                "-U",
                "relay",
                "-E",
                "UTF8",
                "--locale=C",
                "-D",
            ])
            .arg(&data)
            .output()
            .unwrap();
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        let mut text = std::fs::read_to_string(data.join("postgresql.conf")).unwrap();
        text += &format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{}'\n\
             max_connections = 200\nshared_buffers = '32MB'\nmin_wal_size = '32MB'\nautovacuum_naptime = '5s'\n",
            server.port,
            server.folder.display()
        );
        for (name, value) in settings {
            text += &format!("{name} = '{value}'\n");
        }
        std::fs::write(data.join("postgresql.conf"), text).unwrap();
        server.run();
        server
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn command(&self, program: &str) -> Command {
        as_unprivileged(Command::new(self.binaries.join(program)), &self.folder)
    }

    /// Runs the server and waits until it answers. A shell stops it when its own input ends: when it is told
    /// to, or when this process is gone.
    pub(crate) fn run(&self) {
        // What an earlier run has said would look like an answer.
        std::fs::remove_file(self.folder.join("log")).ok();
        let script = r#"
            "$1/postgres" -D "$2/data" >"$2/log" 2>&1 </dev/null &
            server=$!
            read -r how
            kill -"${how:-INT}" "$server" 2>/dev/null
            wait "$server"
            [ -n "$how" ] || rm -rf "$2"
        "#;
        let shell = as_unprivileged(Command::new("/bin/sh"), &self.folder)
            .args(["-c", script, "sh"])
            .args([&self.binaries, &self.folder])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        *self.shell.lock().unwrap() = Some(shell);
        let begun = Instant::now();
        let log = || std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        while !log().contains("ready to accept connections") {
            let is_late = begun.elapsed() > Duration::from_secs(60);
            assert!(!is_late, "the server does not start: {}", log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Stops the server by a signal and waits until it is down: `INT` drops all sessions, `QUIT` is a crash.
    pub(crate) fn stop(&self, signal: &str) {
        use std::io::Write as _;
        let mut shell = self.shell.lock().unwrap().take().expect("it runs");
        writeln!(shell.stdin.take().unwrap(), "{signal}").unwrap();
        shell.wait().unwrap();
    }

    /// Puts a file into its data folder that only it can read.
    pub(crate) fn put(&self, name: &str, text: &str) {
        let path = self.data().join(name);
        std::fs::write(&path, text).unwrap();
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&path, private).unwrap();
        if let Some((user, group)) = unprivileged() {
            std::os::unix::fs::chown(&path, Some(user), Some(group)).unwrap();
        }
    }

    /// The URL of one of its databases.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://relay@127.0.0.1:{}/{database}", self.port)
    }

    /// A session of a superuser in one of its databases.
    pub(crate) async fn session(&self, database: &str) -> PgConnection {
        let options: PgConnectOptions = self.url(database).parse().unwrap();
        options.disable_statement_logging().connect().await.unwrap()
    }

    /// Makes an empty database.
    pub(crate) async fn make(&self, database: &str) {
        let mut session = self.session("postgres").await;
        let statement = format!("CREATE DATABASE {database}");
        session.execute(AssertSqlSafe(statement)).await.unwrap();
        session.close().await.unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut shell) = self.shell.lock().unwrap().take() {
            drop(shell.stdin.take());
            shell.wait().ok();
        }
    }
}

fn as_unprivileged(mut command: Command, folder: &Path) -> Command {
    command.current_dir(folder);
    if let Some((user, group)) = unprivileged() {
        command.uid(user).gid(group);
    }
    // A group of its own: Ctrl-C in the terminal ends the tests, and they end the server.
    command.process_group(0);
    command
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// The server that tests share which do not stop it. It does not sync: no test of it cuts the power.
pub(crate) fn shared() -> &'static Server {
    static SHARED: LazyLock<Server> = LazyLock::new(|| {
        Server::start(&[
            ("fsync", "off"),
            ("full_page_writes", "off"),
            ("autovacuum", "off"),
        ])
    });
    &SHARED
}

/// A database of the shared server and the test that has it.
struct Given {
    name: String,
    /// It is free when this is gone.
    folder: PathBuf,
    thread: ThreadId,
}

/// Databases of the shared server. One whose folder is gone is emptied for the next: a new one would cost more
/// than most tests.
static DATABASES: Mutex<Vec<Given>> = Mutex::new(Vec::new());

/// The URL of the database of the test with this folder; empty when that is new. Tests wait for each other:
/// a transaction holds back deliveries in all databases of its server, and most tests are not about that.
pub(crate) async fn of_folder(folder: &Path) -> String {
    let (name, is_new) = loop {
        if let Some(found) = give(folder) {
            break found;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    match is_new {
        None => {}
        Some(true) => shared().make(&name).await,
        Some(false) => empty(&name).await,
    }
    shared().url(&name)
}

/// The folder's database, or one that becomes its own: whether that has to be made. `None` while another
/// test has one.
fn give(folder: &Path) -> Option<(String, Option<bool>)> {
    let mut databases = DATABASES.lock().unwrap();
    if let Some(ours) = databases.iter().find(|given| given.folder == folder) {
        return Some((ours.name.clone(), None));
    }
    let thread = std::thread::current().id();
    let is_taken = |given: &Given| given.folder.exists() && given.thread != thread;
    if databases.iter().any(is_taken) {
        return None;
    }
    let folder = folder.to_owned();
    if let Some(free) = databases.iter_mut().find(|given| !given.folder.exists()) {
        (free.folder, free.thread) = (folder, thread);
        return Some((free.name.clone(), Some(false)));
    }
    let name = format!("relay_{}", databases.len());
    databases.push(Given {
        name: name.clone(),
        folder,
        thread,
    });
    Some((name, Some(true)))
}

/// Ends all other sessions of a database and drops what is in it.
async fn empty(database: &str) {
    let mut session = shared().session(database).await;
    let ended = "SELECT count(pg_terminate_backend(pid, 5000)) AS sessions FROM pg_stat_activity \
                 WHERE datname = current_database() AND pid <> pg_backend_pid()";
    let row = sqlx::query(ended).fetch_one(&mut session).await.unwrap();
    let _sessions: i64 = row.try_get("sessions").unwrap();
    let statement =
        "SET client_min_messages = error; DROP SCHEMA public CASCADE; CREATE SCHEMA public";
    session.execute(statement).await.unwrap();
    session.close().await.unwrap();
}

/// Whether nobody but its owner may look into the folder of a server.
#[test]
fn a_server_runs_as_an_unprivileged_user_in_a_private_folder() {
    if !is_there() {
        return;
    }
    let metadata = std::fs::metadata(&shared().folder).unwrap();
    assert_ne!(metadata.uid(), 0);
    assert_eq!(metadata.mode() & 0o077, 0);
}
