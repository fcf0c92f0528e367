//! Records: versions, values and deletions.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, TryStreamExt as _, future::try_join_all, stream};
use mesh_core::backend::{
    BackendError, Name, REPEAT_TIME_MAX, Record, RecordUpdate, Reply, Topic, Version,
};
use redis::Value;

use super::ENTRIES_PER_CALL;
use crate::{
    connection::Failure,
    decode, envelope,
    keys::{PARTITIONS_AT_ONCE, Partition},
    scripts,
    shared::{Open, Shared, usage},
};

impl Shared {
    pub(super) async fn record(self: &Arc<Self>, record: &Name) -> Result<Reply, BackendError> {
        let open = self.open_instance()?;
        let mut cmd = redis::cmd("HMGET");
        cmd.arg(self.keys.record(record)).arg(&["n", "s", "d"]);
        let reply = self.send(&open.session, &cmd).await?;
        let read = || -> Result<_, Failure> {
            let [number, stamp, value] =
                <[Value; 3]>::try_from(decode::list(reply)?).map_err(|_| decode::unexpected())?;
            if number == Value::Nil {
                return Ok(Record::default());
            }
            Ok(Record {
                value: decode::maybe_text(value)?.map(Into::into),
                version: version(number, stamp)?,
            })
        };
        let record = read().map_err(|failure| self.failed(&open.session, failure))?;
        Ok(Reply::Record(record))
    }

    pub(super) async fn record_versions(
        self: &Arc<Self>,
        records: &[Name],
    ) -> Result<Reply, BackendError> {
        let open = self.open_instance()?;
        let mut partitions = BTreeMap::<_, Vec<usize>>::new();
        for (at, record) in records.iter().enumerate() {
            partitions
                .entry(Partition::of(record))
                .or_default()
                .push(at);
        }
        let session = &open.session;
        let mut asked = Vec::new();
        for places in partitions.values() {
            for places in places.chunks(ENTRIES_PER_CALL) {
                let keys = places.iter().map(|at| self.keys.record(&records[*at]));
                let call = scripts::RECORD_VERSIONS.call(keys, []);
                asked.push(async move {
                    let reply = self.send(session, &call).await?;
                    let found = versions(reply).map_err(|failure| self.failed(session, failure))?;
                    Ok::<_, BackendError>((places, found))
                });
            }
        }
        let found: Vec<_> = stream::iter(asked)
            .buffer_unordered(PARTITIONS_AT_ONCE)
            .try_collect()
            .await?;
        let mut versions = vec![Version::default(); records.len()];
        for (places, found) in found {
            for (at, version) in places.iter().zip(found) {
                versions[*at] = version;
            }
        }
        Ok(Reply::RecordVersions(versions))
    }

    pub(super) async fn publish_record(
        self: &Arc<Self>,
        record: &Name,
        base: Version,
        updates: &[RecordUpdate],
    ) -> Result<Reply, BackendError> {
        let open = self.open_instance()?;
        let (Some(first), Some((last, before))) = (updates.first(), updates.split_last()) else {
            return Err(usage("there is nothing to publish"));
        };
        let topic = self.keys.topic(&Topic::Record(record.clone()));
        let (number, stamp) = (base.number.to_string(), base.stamp.to_string());
        let head = envelope::notice_head(&envelope::NOBODY, false);
        let kept = REPEAT_TIME_MAX.as_secs().to_string();
        let mut arguments = vec![
            record.as_bytes(),
            number.as_bytes(),
            stamp.as_bytes(),
            kept.as_bytes(),
            self.keys.publish_command(&topic).as_bytes(),
            topic.as_bytes(),
            &head,
            last.value.as_bytes(),
        ];
        let change = |update: &RecordUpdate| {
            let change = match &update.patch {
                Some(patch) => format!("p{patch}"),
                None => format!("f{}", update.value),
            };
            [update.stamp.to_string(), change]
        };
        let mut changes: Vec<_> = before.iter().map(change).collect();
        changes.push(match &last.patch {
            Some(_) => change(last),
            // It travels once.
            None => [last.stamp.to_string(), "f".to_owned()],
        });
        arguments.extend(changes.iter().flatten().map(String::as_bytes));
        let keys = self.record_keys(record, first.stamp);
        let call = scripts::RECORD_PUBLISH.call(keys, arguments);
        let reply = self.send(&open.session, &call).await?;
        let read = || -> Result<_, Failure> {
            let mut reply = decode::list(reply)?.into_iter();
            let kind = decode::text(reply.next().unwrap_or(Value::Nil))?;
            let number = reply.next().unwrap_or(Value::Nil);
            if kind == "ok" {
                let first = decode::number(number)?;
                return Ok(Reply::Published { first });
            }
            let version = version(number, reply.next().unwrap_or(Value::Nil))?;
            let value = decode::maybe_text(reply.next().unwrap_or(Value::Nil))?;
            let value = value.map(Into::into);
            Ok(Reply::Conflict(Record { value, version }))
        };
        read().map_err(|failure| self.failed(&open.session, failure))
    }

    pub(super) async fn delete_record(
        self: &Arc<Self>,
        record: &Name,
        stamp: u64,
    ) -> Result<Reply, BackendError> {
        let open = self.open_instance()?;
        let topic = self.keys.topic(&Topic::Record(record.clone()));
        let (text, kept) = (stamp.to_string(), REPEAT_TIME_MAX.as_secs().to_string());
        let arguments = [
            record.as_bytes(),
            text.as_bytes(),
            kept.as_bytes(),
            self.keys.publish_command(&topic).as_bytes(),
            topic.as_bytes(),
            &envelope::notice_head(&envelope::NOBODY, false),
        ];
        let call = scripts::RECORD_DELETE.call(self.record_keys(record, stamp), arguments);
        let reply = self.send(&open.session, &call).await?;
        let number = match reply {
            Value::Nil => None,
            number => Some(
                decode::number(number).map_err(|failure| self.failed(&open.session, failure))?,
            ),
        };
        Ok(Reply::Deleted(number))
    }

    fn record_keys(&self, record: &Name, stamp: u64) -> [String; 3] {
        [
            self.keys.record(record),
            self.keys.answer(record, stamp),
            self.keys.deleted_records(Partition::of(record)),
        ]
    }

    pub(super) async fn purge_deleted(
        self: &Arc<Self>,
        older_than: Duration,
    ) -> Result<Reply, BackendError> {
        let open = self.open_instance()?;
        let age = older_than.as_millis().to_string();
        let purged = Partition::all().map(|at| self.purge(&open, at, &age));
        let purged: Vec<u64> = stream::iter(purged)
            .buffer_unordered(PARTITIONS_AT_ONCE)
            .try_collect()
            .await?;
        Ok(Reply::Count(purged.iter().sum()))
    }

    async fn purge(&self, open: &Open, at: Partition, age: &str) -> Result<u64, BackendError> {
        let deleted = self.keys.deleted_records(at);
        let most = (ENTRIES_PER_CALL * PARTS_PER_PAGE).to_string();
        let mut purged = 0;
        loop {
            let arguments = [age.as_bytes(), most.as_bytes()];
            let call = scripts::RECORDS_DELETED.call([&deleted], arguments);
            let reply = self.send(&open.session, &call).await?;
            let records =
                decode::texts(reply).map_err(|failure| self.failed(&open.session, failure))?;
            let mut parts = Vec::new();
            for part in records.chunks(ENTRIES_PER_CALL) {
                let records = part.iter().map(|record| self.keys.record(record));
                let keys = std::iter::once(deleted.clone()).chain(records);
                let names = part.iter().map(String::as_bytes);
                let arguments = std::iter::once(age.as_bytes()).chain(names);
                let call = scripts::RECORDS_PURGE.call(keys, arguments);
                parts.push(async move {
                    let reply = self.send(&open.session, &call).await?;
                    decode::integer(&reply).map_err(|failure| self.failed(&open.session, failure))
                });
            }
            let counts: Vec<i64> = try_join_all(parts).await?;
            purged += counts.iter().sum::<i64>().unsigned_abs();
            if records.len() < ENTRIES_PER_CALL * PARTS_PER_PAGE {
                return Ok(purged);
            }
        }
    }
}

/// How many calls the deleted records of one page make.
const PARTS_PER_PAGE: usize = 2;

fn version(number: Value, stamp: Value) -> Result<Version, Failure> {
    Ok(Version {
        number: decode::number(number)?,
        stamp: decode::number(stamp)?,
    })
}

pub(crate) fn versions(reply: Value) -> Result<Vec<Version>, Failure> {
    let values = decode::list(reply)?;
    let (pairs, []) = values.as_chunks::<2>() else {
        return Err(decode::unexpected());
    };
    let pairs = pairs.iter().cloned();
    pairs
        .map(|[number, stamp]| version(number, stamp))
        .collect()
}
