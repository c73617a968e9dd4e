//! What can end an applier.

use pg_ha_model::NodeId;
use pg_ha_replication::codec::CodecError;
use pg_ha_replication::stream::StreamError;

use super::super::complete::CompleteError;
use super::super::tables::TruncateError;
use crate::catalog::sequences::SetError;
use crate::catalog::{self, subscription_tables};
use crate::postgres::apply::ApplyError;

/// What ends the applier, PostgreSQL's own errors apart.
#[derive(Debug, thiserror::Error)]
pub(in crate::workers::applier) enum Failure {
    #[error("the stream cannot be read: {0}")]
    Codec(#[from] CodecError),
    #[error("the stream is out of order: {0}")]
    Order(#[from] StreamError),
    #[error(transparent)]
    Row(#[from] ApplyError),
    #[error("a message of the provider cannot be read: {0}")]
    Message(serde_json::Error),
    #[error(transparent)]
    Catalog(#[from] catalog::Error),
    #[error(transparent)]
    Complete(#[from] CompleteError),
    #[error(transparent)]
    Sequence(#[from] SetError),
    #[error(transparent)]
    Empty(#[from] subscription_tables::EmptyError),
    #[error(transparent)]
    Truncate(#[from] TruncateError),
    #[error(transparent)]
    Spool(#[from] crate::durable::Error),
    #[error("{0}")]
    Positions(String),
    #[error("what is to be passed over could not be read: {0}")]
    Skip(String),
    /// An error of PostgreSQL that another attempt meets too.
    #[error("{0}")]
    Server(String),
    /// Only of prepared transactions, which are then kept until they commit.
    #[error("{0}")]
    NotBeforeCommit(String),
    #[error("the provider is node {found}, not {wanted}, which this subscription was made for")]
    WrongProvider { found: NodeId, wanted: NodeId },
    #[error("the stream brought a transaction of node {0}, which cannot come this way")]
    ForeignOrigin(NodeId),
    #[error("the ways of changes could not be read: {0}")]
    Ways(String),
}
