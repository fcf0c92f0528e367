//! An update of a record, as a future.

use std::{future::IntoFuture, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use mesh_core::protocol::{
    EncodeError,
    builtin::{PublishRecordUpdate, RecordOptions, RecordStrategy, SuccessReply},
    names,
};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::{
    call::{CommandCall, typed},
    error::ClientError,
    shared::Shared,
};

/// An update of a record about to be published: set its options, then await it.
///
/// It is a command like any other: it waits for a connection, and one whose connection goes before the reply ends as
/// [`ClientError::Disconnected`] and is not sent again.
#[derive(Debug)]
#[must_use = "nothing is sent before it is awaited"]
pub struct PublishRecordCall {
    shared: Arc<Shared>,
    record: String,
    value: Result<Box<RawValue>, EncodeError>,
    strategy: RecordStrategy,
    timeout: Option<Duration>,
    fail_offline: bool,
}

impl PublishRecordCall {
    pub(crate) fn new<V: Serialize + ?Sized>(
        shared: &Arc<Shared>,
        record: &str,
        value: &V,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            record: record.to_owned(),
            value: to_raw_value(value).map_err(EncodeError::from),
            strategy: RecordStrategy::Replace,
            timeout: None,
            fail_offline: false,
        }
    }

    /// The keys of the new object replace those of the stored one, one level deep, and the others stay. Where either is no object the
    /// new value replaces what is stored.
    pub fn merge(mut self) -> Self {
        self.strategy = RecordStrategy::Merge;
        self
    }

    /// As [`merge`](Self::merge), and so on inside of each key whose values are objects on both sides.
    pub fn deep_merge(mut self) -> Self {
        self.strategy = RecordStrategy::DeepMerge;
        self
    }

    /// The time until the outcome, waiting for a connection included. Default: the client's command timeout.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Fails at once with [`ClientError::Offline`] if there is no connection, in place of waiting for one.
    pub fn fail_offline(mut self) -> Self {
        self.fail_offline = true;
        self
    }

    /// The command that it is.
    fn command(&self) -> Result<CommandCall<SuccessReply>, ClientError> {
        let new_value = self.value.as_ref().map_err(Clone::clone)?;
        let strategy = self.strategy;
        let payload = PublishRecordUpdate {
            record_id: self.record.as_str().into(),
            new_value,
            options: (strategy != RecordStrategy::Replace).then_some(RecordOptions { strategy }),
        };
        let dialect = self.shared.state.lock().client.dialect();
        let name = dialect.name(names::PUBLISH_RECORD_UPDATE);
        let mut call = CommandCall::new(&self.shared, &name, &payload, typed);
        if let Some(timeout) = self.timeout {
            call = call.timeout(timeout);
        }
        if self.fail_offline {
            call = call.fail_offline();
        }
        Ok(call)
    }
}

impl IntoFuture for PublishRecordCall {
    type Output = Result<(), ClientError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let call = self.command().map(CommandCall::into_future);
        let record = self.record;
        Box::pin(async move {
            let SuccessReply { success } = call?.await?;
            success.then_some(()).ok_or(ClientError::NotExposed(record))
        })
    }
}

#[cfg(test)]
mod tests;
