//! `ha.kept_transactions` and `ha.kept_changes`: what is prepared on a provider and could not be prepared here; and
//! what could, in PostgreSQL's own view.

use pgrx::datum::TimestampWithTimeZone;

use super::{Error, execute, read, read_one};

/// What there is of a transaction that a provider has prepared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    /// It is prepared here too.
    Prepared,
    /// Its changes are kept; these subtransactions of it were rolled back.
    Kept(Vec<u32>),
}

/// Looks for it: by its name here, and by its number on the provider.
pub(crate) fn find(subscription_id: i32, xid: u32, local_gid: &str) -> Result<Found, Error> {
    let kept = read_one(
        "SELECT aborted FROM ha.kept_transactions WHERE subscription_id = $1 AND xid = $2",
        &[subscription_id.into(), i64::from(xid).into()],
        |row| row.get::<Vec<i64>>(1),
    )?;
    if let Some(aborted) = kept {
        return Ok(Found::Kept(
            aborted.into_iter().map(|subxid| subxid as u32).collect(),
        ));
    }
    let prepared = read_one(
        "SELECT true FROM pg_catalog.pg_prepared_xacts \
          WHERE gid = $1 AND database = pg_catalog.current_database()",
        &[local_gid.into()],
        |row| row.get::<bool>(1),
    )?;
    Ok(prepared.map_or(Found::Nothing, |_| Found::Prepared))
}

/// A transaction whose changes are kept; they follow, by [`keep_frame`].
pub(crate) fn keep(
    subscription_id: i32,
    xid: u32,
    gid: &str,
    prepared_at: i64,
    reason: &str,
    aborted: Vec<i64>,
) -> Result<(), Error> {
    let prepared_at = TimestampWithTimeZone::try_from(prepared_at).unwrap_or_else(|_| pgrx::datum::now());
    execute(
        "INSERT INTO ha.kept_transactions (subscription_id, xid, gid, prepared_at, reason, aborted) \
         VALUES ($1, $2, $3, $4, $5, $6)",
        &[
            subscription_id.into(),
            i64::from(xid).into(),
            gid.into(),
            prepared_at.into(),
            reason.into(),
            aborted.into(),
        ],
    )?;
    Ok(())
}

pub(crate) fn keep_frame(subscription_id: i32, xid: u32, number: i32, frame: &[u8]) -> Result<(), Error> {
    execute(
        "INSERT INTO ha.kept_changes (subscription_id, xid, number, frame) VALUES ($1, $2, $3, $4)",
        &[
            subscription_id.into(),
            i64::from(xid).into(),
            number.into(),
            frame.into(),
        ],
    )?;
    Ok(())
}

/// One frame; none behind the last.
pub(crate) fn frame(subscription_id: i32, xid: u32, number: i32) -> Result<Option<Vec<u8>>, Error> {
    read_one(
        "SELECT frame FROM ha.kept_changes WHERE subscription_id = $1 AND xid = $2 AND number = $3",
        &[subscription_id.into(), i64::from(xid).into(), number.into()],
        |row| row.get::<Vec<u8>>(1),
    )
}

/// Forgets a transaction and its changes. Foreign keys do not work where changes are applied.
pub(crate) fn forget(subscription_id: i32, xid: u32) -> Result<(), Error> {
    for table in ["ha.kept_changes", "ha.kept_transactions"] {
        execute(
            &format!("DELETE FROM {table} WHERE subscription_id = $1 AND xid = $2"),
            &[subscription_id.into(), i64::from(xid).into()],
        )?;
    }
    Ok(())
}

/// The names of what is prepared here for a subscription.
pub(crate) fn local_gids(prefix: &str) -> Result<Vec<String>, Error> {
    read(
        "SELECT gid FROM pg_catalog.pg_prepared_xacts \
          WHERE pg_catalog.starts_with(gid, $1) AND database = pg_catalog.current_database() ORDER BY prepared",
        &[prefix.into()],
        |row| row.get(1),
    )
}
