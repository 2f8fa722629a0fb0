//! After a failure: another connection, and the truth about the last commit.

use sqlx::postgres::PgConnection;
use sqlx::{Executor as _, Row as _};
use tracing::info;

use super::connect::Role;
use super::errors::words;
use super::keys::raise_base;
use super::schema::{is_ours, known_schema};
use super::usage::{self, Delta};
use super::writer::{BEGIN, PostgresWriter};
use crate::store::engine::TookPlace;

impl PostgresWriter {
    /// Opens another connection, finds out what became of the last commit, and writes something.
    pub(super) async fn reopen_now(&mut self) -> Result<(), String> {
        self.begun = None;
        self.connection = None;
        let connecting = self.connector.connect(Role::Writer).await;
        let mut connection = connecting.map_err(|failed| failed.words())?;
        let is_ours = is_ours(&mut connection, &self.secret).await;
        if !is_ours.map_err(|error| words(&error))? {
            return Err(format!(
                "the server has a different database now, or another schema than {}",
                known_schema()
            ));
        }
        let settled = self.settle(&mut connection).await;
        settled.map_err(|error| words(&error))?;
        self.connection = Some(connection);
        Ok(())
    }

    /// The old session may still be on its way to its COMMIT: its row of `usage` is locked until it has come
    /// to an end, and only then does the number tell what that was. The trial write comes after it and is
    /// durable before anybody is told: so is the commit in question.
    async fn settle(&mut self, connection: &mut PgConnection) -> sqlx::Result<()> {
        // Where it is idle in its transaction it would hold the lock for seconds. Whether it is still ours is
        // seen by its name; it may be long gone.
        sqlx::query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 \
             AND usename = current_user AND application_name = 'vauchi-relay' AND pid <> pg_backend_pid()",
        )
        .bind(self.process)
        .execute(&mut *connection)
        .await?;
        if raise_base(connection, self.last_key).await? {
            info!(
                "store: the server counts transactions from a smaller number than before; positions go on from the last one"
            );
        }
        let number = self.instance.number();
        usage::enter(connection, number).await?;
        connection.execute(BEGIN).await?;
        let commits = usage::lock_commits(connection, number).await?;
        if let Some(number) = self.unsettled.take() {
            self.settled = Some(match commits >= number {
                true => TookPlace::Yes,
                false => TookPlace::No,
            });
        }
        self.commits = commits;
        let (nothing, nobody) = (Delta::default(), (Vec::new(), Vec::new()));
        usage::advance(connection, (number, &nothing, commits + 1), nobody).await?;
        connection.execute("COMMIT").await?;
        self.commits = commits + 1;
        let row = sqlx::query("SELECT pg_backend_pid() AS process")
            .fetch_one(connection)
            .await?;
        self.process = row.try_get("process")?;
        Ok(())
    }
}
