//! Server settings under which confirmed blobs can be lost, or under which the database suffers.

use sqlx::Row as _;
use sqlx::postgres::PgConnection;

/// One line for each setting that the operator should know about.
pub(super) async fn read(connection: &mut PgConnection) -> sqlx::Result<Vec<String>> {
    let rows = sqlx::query(
        "SELECT name, reset_val AS value FROM pg_settings WHERE name IN ('fsync', 'full_page_writes', \
         'synchronous_commit', 'synchronous_standby_names', 'autovacuum', 'zero_damaged_pages')",
    )
    .fetch_all(connection)
    .await?;
    let mut settings = std::collections::HashMap::new();
    for row in &rows {
        let (name, value): (String, String) = (row.try_get("name")?, row.try_get("value")?);
        settings.insert(name, value);
    }
    Ok(advice(|name| settings.get(name).map_or("", String::as_str)))
}

fn advice<'a>(value: impl Fn(&str) -> &'a str) -> Vec<String> {
    let mut advice = Vec::new();
    let mut say = |line: &str| advice.push(format!("PostgreSQL: {line}"));
    if value("fsync") == "off" {
        say(
            "fsync is off: a power cut can lose confirmed blobs and destroy the database; turn it on",
        );
    }
    if value("full_page_writes") == "off" {
        say("full_page_writes is off: a power cut can destroy the database; turn it on");
    }
    if value("zero_damaged_pages") == "on" {
        say("zero_damaged_pages is on: the server deletes what it cannot read; turn it off");
    }
    if value("synchronous_commit") == "off" {
        say("synchronous_commit is off; the relay turns it on for its own transactions");
    }
    if value("synchronous_commit") == "local" && !value("synchronous_standby_names").is_empty() {
        say(
            "synchronous_commit is local: a failover to a standby can lose confirmed blobs; set it to on",
        );
    }
    if value("autovacuum") == "off" {
        say("autovacuum is off: the database grows with every blob that leaves; turn it on");
    }
    advice
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_safe_server_needs_no_advice_and_each_unsafe_setting_gets_a_line() {
        let safe = |name: &str| match name {
            "synchronous_standby_names" => "",
            "zero_damaged_pages" => "off",
            _ => "on",
        };
        assert_eq!(advice(safe), [""; 0]);
        for name in [
            "fsync",
            "full_page_writes",
            "synchronous_commit",
            "autovacuum",
        ] {
            let lines = advice(|other| if other == name { "off" } else { safe(other) });
            assert_eq!(lines.len(), 1, "{name}");
            assert!(lines[0].contains(name), "{lines:?}");
        }
        let local = |name: &str| match name {
            "synchronous_commit" => "local",
            "synchronous_standby_names" => "ANY 1 (a, b)",
            other => safe(other),
        };
        assert_eq!(advice(local).len(), 1);
    }
}
