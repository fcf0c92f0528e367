//! The Lua scripts, one file and one purpose each.
//!
//! They are loaded at every connect and called by their hash. What they share is put behind their first line, which
//! must stay the first: it makes Redis refuse a key of another slot, on a single node too. What only removes, what keeps an
//! instance alive and what states again runs on a Redis that is full as well (`allow-oom`): leaving is how it empties.

use std::sync::LazyLock;

use redis::{Arg, Cmd};
use sha1::{Digest as _, Sha1};

/// A script with its hash.
#[derive(Debug)]
pub(crate) struct Script {
    #[cfg(test)]
    name: &'static str,
    text: String,
    hash: String,
}

impl Script {
    fn new(#[cfg(test)] name: &'static str, text: &str, shared: &[&str]) -> Self {
        let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
        let mut text = format!("{first}\n");
        for part in shared {
            text.push_str(part);
        }
        text.push_str(rest);
        let digest = Sha1::digest(text.as_bytes());
        let hash = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Self {
            #[cfg(test)]
            name,
            text,
            hash,
        }
    }

    /// A call of this script.
    pub(crate) fn call<'a>(
        &self,
        keys: impl IntoIterator<Item = impl AsRef<str>>,
        arguments: impl IntoIterator<Item = &'a [u8]>,
    ) -> Cmd {
        let keys: Vec<_> = keys.into_iter().collect();
        let mut cmd = redis::cmd("EVALSHA");
        cmd.arg(&self.hash).arg(keys.len());
        for key in &keys {
            cmd.arg(key.as_ref());
        }
        for argument in arguments {
            cmd.arg(argument);
        }
        cmd
    }

    /// The same call with the text of the script, for a server that does not know it.
    pub(crate) fn call_whole(cmd: &Cmd) -> Option<Cmd> {
        let mut arguments = cmd.args_iter();
        let Some(Arg::Simple(b"EVALSHA")) = arguments.next() else {
            return None;
        };
        let Some(Arg::Simple(hash)) = arguments.next() else {
            return None;
        };
        let script = all()
            .into_iter()
            .find(|script| script.hash.as_bytes() == hash)?;
        let mut whole = redis::cmd("EVAL");
        whole.arg(&script.text);
        for argument in arguments {
            if let Arg::Simple(argument) = argument {
                whole.arg(argument);
            }
        }
        Some(whole)
    }

    /// Brings the script to the server.
    pub(crate) fn load(&self) -> Cmd {
        let mut cmd = redis::cmd("SCRIPT");
        cmd.arg("LOAD").arg(&self.text);
        cmd
    }
}

const ENTRY: &str = include_str!("scripts/entry.lua");
const FENCE: &str = include_str!("scripts/fence.lua");
const JSON: &str = include_str!("scripts/json.lua");
const ROOMS: &str = include_str!("scripts/rooms.lua");

macro_rules! scripts {
    ($($name:ident = $file:literal, [$($shared:expr),*];)*) => {
        $(pub(crate) static $name: LazyLock<Script> = LazyLock::new(|| {
            Script::new(#[cfg(test)] $file, include_str!(concat!("scripts/", $file, ".lua")), &[$($shared),*])
        });)*

        /// Every script.
        pub(crate) fn all() -> Vec<&'static Script> {
            vec![$(&*$name),*]
        }
    };
}

scripts! {
    CHANNEL_HISTORY = "channel_history", [];
    CHANNEL_PUBLISH = "channel_publish", [];
    CONNECTION_CHANGE = "connection_change", [FENCE, JSON];
    CONNECTION_CLOSE = "connection_close", [FENCE];
    CONNECTION_OPEN = "connection_open", [FENCE];
    CONNECTIONS_REAP = "connections_reap", [];
    CONNECTIONS_RESTORE = "connections_restore", [FENCE];
    FIELDS = "fields", [];
    INSTANCE_CLOSE = "instance_close", [];
    INSTANCE_ENTOMB = "instance_entomb", [];
    INSTANCE_HEARTBEAT = "instance_heartbeat", [];
    INSTANCE_KEEP = "instance_keep", [];
    INSTANCE_LOOK = "instance_look", [ENTRY];
    INSTANCE_REGISTER = "instance_register", [ENTRY];
    INSTANCE_TAKEN = "instance_taken", [];
    MEMBERS_FORGET = "members_forget", [FENCE];
    MEMBERS_REAP = "members_reap", [ROOMS];
    MEMBERS_REMOVE = "members_remove", [FENCE, ROOMS];
    MEMBERS_RESTORE = "members_restore", [FENCE, ROOMS];
    RECORD_DELETE = "record_delete", [];
    RECORD_PUBLISH = "record_publish", [];
    RECORD_VERSIONS = "record_versions", [];
    RECORDS_DELETED = "records_deleted", [];
    RECORDS_PURGE = "records_purge", [];
    ROOM_CHANGE = "room_change", [FENCE, JSON, ROOMS];
    ROOM_CLEAR = "room_clear", [FENCE, ROOMS];
    ROOM_JOIN = "room_join", [FENCE, ROOMS];
    ROOM_LEAVE = "room_leave", [FENCE, ROOMS];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_script_says_what_it_is() {
        for script in all() {
            assert!(script.text.starts_with("#!lua"), "{}", script.name);
            for word in ["KEYS:", "ARGV", "Reply:", "Cost:"] {
                assert!(script.text.contains(word), "{} says no {word}", script.name);
            }
            let whole = Script::call_whole(&script.call(["k"], [b"a".as_slice()])).unwrap();
            let mut expected = redis::cmd("EVAL");
            expected.arg(&script.text).arg(1).arg("k").arg("a");
            assert_eq!(whole.get_packed_command(), expected.get_packed_command());
        }
    }
}
