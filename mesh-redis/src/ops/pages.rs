//! Enumerations, page by page.

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use mesh_core::backend::BackendError;
use redis::Cmd;

use crate::{
    connection::SharedSession,
    decode,
    keys::{PARTITIONS_AT_ONCE, Partition},
    scripts,
    shared::Shared,
};

/// How many entries one page has, about.
const PAGE: &str = "1000";

impl Shared {
    /// The fields of a hash, each once.
    pub(super) async fn fields(
        &self,
        session: &SharedSession,
        key: String,
    ) -> Result<Vec<String>, BackendError> {
        let call =
            |cursor: &str| scripts::FIELDS.call([&key], [cursor.as_bytes(), PAGE.as_bytes()]);
        let mut fields = self.scan(session, call).await?;
        fields.sort_unstable();
        fields.dedup();
        Ok(fields)
    }

    /// The fields of a hash with their values.
    pub(super) async fn entries(
        &self,
        session: &SharedSession,
        key: String,
    ) -> Result<BTreeMap<String, String>, BackendError> {
        let call = |cursor: &str| {
            let mut cmd = redis::cmd("HSCAN");
            cmd.arg(&key).arg(cursor).arg("COUNT").arg(PAGE);
            cmd
        };
        let mut flat = self.scan(session, call).await?.into_iter();
        let mut entries = BTreeMap::new();
        while let (Some(field), Some(value)) = (flat.next(), flat.next()) {
            entries.insert(field, value);
        }
        Ok(entries)
    }

    async fn scan(
        &self,
        session: &SharedSession,
        call: impl Fn(&str) -> Cmd,
    ) -> Result<Vec<String>, BackendError> {
        let mut all = Vec::new();
        let mut cursor = "0".to_owned();
        loop {
            let reply = self.send(session, &call(&cursor)).await?;
            let page = decode::page(reply);
            let (next, found) = page.map_err(|failure| self.failed(session, failure))?;
            all.extend(found);
            if next == "0" {
                return Ok(all);
            }
            cursor = next;
        }
    }

    /// The fields of one hash of every partition.
    pub(super) async fn all_fields(
        &self,
        session: &SharedSession,
        key: impl Fn(Partition) -> String,
    ) -> Result<Vec<String>, BackendError> {
        let parts = Partition::all().map(|at| self.fields(session, key(at)));
        stream::iter(parts)
            .buffer_unordered(PARTITIONS_AT_ONCE)
            .try_concat()
            .await
    }

    /// The entries of one hash of every partition.
    pub(super) async fn all_entries(
        &self,
        session: &SharedSession,
        key: impl Fn(Partition) -> String,
    ) -> Result<BTreeMap<String, String>, BackendError> {
        let parts = Partition::all().map(|at| self.entries(session, key(at)));
        stream::iter(parts)
            .buffer_unordered(PARTITIONS_AT_ONCE)
            .try_concat()
            .await
    }
}
