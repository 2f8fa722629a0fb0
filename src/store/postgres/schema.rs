//! The schema of the database, and whose it is.

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::PgConnection;
use sqlx::{Executor as _, Row as _};

use super::connect::TIME_OUT_OF_WRITER;
use crate::secrets::Secret;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations/postgres");

const NO_TIME_OUT: &str = "SET statement_timeout = 0";

/// Why the schema could not be brought up to date.
pub(super) enum Stale {
    /// A newer relay has changed it.
    Newer(i64),
    /// The server refuses something.
    Sql(sqlx::Error),
    /// Anything else, in the migrator's words.
    Words(String),
}

/// Brings the schema up to date, however long that takes.
pub(super) async fn migrate(connection: &mut PgConnection) -> Result<(), Stale> {
    let unhurried = connection.execute(NO_TIME_OUT).await;
    unhurried.map_err(Stale::Sql)?;
    let migrated = MIGRATIONS.run(&mut *connection).await;
    let hurried = connection.execute(TIME_OUT_OF_WRITER).await;
    hurried.map_err(Stale::Sql)?;
    migrated.map_err(|error| match error {
        MigrateError::VersionMissing(found) => Stale::Newer(found),
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
            Stale::Sql(error)
        }
        other => Stale::Words(other.to_string()),
    })
}

/// The latest version that this build knows.
pub(super) fn known_schema() -> i64 {
    let versions = MIGRATIONS.iter().map(|migration| migration.version);
    versions.max().unwrap_or(0)
}

/// The version that a database has; `None` when it was never a relay's.
pub(super) async fn schema(connection: &mut PgConnection) -> sqlx::Result<Option<i64>> {
    let row = sqlx::query("SELECT to_regclass('_sqlx_migrations') IS NOT NULL AS is_there")
        .fetch_one(&mut *connection)
        .await?;
    if !row.try_get::<bool, _>("is_there")? {
        return Ok(None);
    }
    let row = sqlx::query("SELECT max(version) AS version FROM _sqlx_migrations")
        .fetch_one(connection)
        .await?;
    row.try_get("version")
}

/// Whether the database belongs to this secret; a fresh one belongs to it from now on.
pub(super) async fn bind_secret(
    connection: &mut PgConnection,
    secret: &Secret,
) -> sqlx::Result<bool> {
    sqlx::query(
        "INSERT INTO meta (name, bytes) VALUES ('secret_check', $1) ON CONFLICT DO NOTHING",
    )
    .bind(secret.check_value().as_slice())
    .execute(&mut *connection)
    .await?;
    Ok(secret_matches(connection, secret).await?.unwrap_or(false))
}

/// Whether the database belongs to this secret; `None` when it belongs to none yet.
pub(super) async fn secret_matches(
    connection: &mut PgConnection,
    secret: &Secret,
) -> sqlx::Result<Option<bool>> {
    let row = sqlx::query("SELECT bytes FROM meta WHERE name = 'secret_check'")
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let kept: &[u8] = row.try_get("bytes")?;
    Ok(Some(kept == secret.check_value()))
}

/// Whether this is the database that was opened, as far as schema and secret tell.
pub(super) async fn is_ours(connection: &mut PgConnection, secret: &Secret) -> sqlx::Result<bool> {
    if schema(connection).await? != Some(known_schema()) {
        return Ok(false);
    }
    Ok(secret_matches(connection, secret).await? == Some(true))
}
