//! Where a PostgreSQL database is: the URL that libpq reads, with one host or several.

use std::path::PathBuf;

/// A PostgreSQL database. Its URLs may hold a password, so `Debug` prints the hosts alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Database {
    /// One URL for each host, in the order in which they are tried.
    urls: Vec<String>,
    place: String,
    /// `RELAY_DATABASE_PASSWORD_FILE`: read again for each connection.
    pub password_file: Option<PathBuf>,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Database({})", self.place)
    }
}

impl Database {
    /// Reads `postgres://user:password@host:port,host:port/name?parameters`; the error is what is wrong with
    /// it, and quotes nothing.
    pub fn parse(url: &str) -> Result<Self, &'static str> {
        let rest = url
            .strip_prefix("postgres://")
            .or_else(|| url.strip_prefix("postgresql://"))
            .ok_or("does not begin with postgres://")?;
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (login, hosts) = match authority.rsplit_once('@') {
            Some((login, hosts)) => (format!("{login}@"), hosts),
            None => (String::new(), authority),
        };
        let urls: Vec<_> = hosts
            .split(',')
            .map(|host| format!("postgres://{login}{host}{path}"))
            .collect();
        if urls.len() > 1 && hosts.split(',').any(str::is_empty) {
            return Err("has an empty name in its list of hosts");
        }
        let name = path.trim_start_matches('/').split('?').next();
        let name = name.unwrap_or_default();
        if name.is_empty() {
            return Err("names no database");
        }
        let hosts = match hosts {
            "" => "a local socket",
            hosts => hosts,
        };
        Ok(Self {
            urls,
            place: format!("{name} at {hosts}"),
            password_file: None,
        })
    }

    /// One URL for each host.
    pub fn urls(&self) -> impl Iterator<Item = &str> {
        self.urls.iter().map(String::as_str)
    }

    /// Name and hosts, without the login.
    pub fn place(&self) -> String {
        self.place.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_hosts_become_a_url_each_and_nothing_shows_the_password() {
        let database =
            Database::parse("postgresql://relay:s3cret@db1:5433,[::1]/relay?sslmode=verify-full")
                .unwrap();
        let urls: Vec<_> = database.urls().collect();
        assert_eq!(
            urls,
            [
                "postgres://relay:s3cret@db1:5433/relay?sslmode=verify-full",
                "postgres://relay:s3cret@[::1]/relay?sslmode=verify-full"
            ]
        );
        assert_eq!(database.place(), "relay at db1:5433,[::1]");
        assert!(!format!("{database:?}").contains("s3cret"));
    }

    #[test]
    fn a_socket_has_no_host() {
        let database = Database::parse("postgres:///relay?host=/run/postgresql").unwrap();
        assert_eq!(database.urls().count(), 1);
        assert_eq!(database.place(), "relay at a local socket");
    }

    #[test]
    fn what_is_no_such_url_says_why() {
        for (url, why) in [
            ("mysql://db/relay", "does not begin"),
            ("postgres://db", "names no database"),
            ("postgres://db/", "names no database"),
            ("postgres://a,,b/relay", "empty name"),
        ] {
            assert!(Database::parse(url).unwrap_err().contains(why), "{url}");
        }
    }
}
