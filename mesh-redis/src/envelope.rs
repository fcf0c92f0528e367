//! What is around the messages of mesh's own topics: a format version and the sender, so that it knows its own.
//!
//! ```text
//! 1 byte  format version, 1
//! 8 bytes sender, random for each backend
//! …       the message
//! ```
//!
//! Messages of channels have none: they are what any Redis client published.

use bytes::Bytes;

const VERSION: u8 = 1;
const HEADER: usize = 9;

/// Who sent a message.
pub(crate) type Sender = [u8; 8];

pub(crate) fn seal(sender: &Sender, message: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(HEADER + message.len());
    sealed.push(VERSION);
    sealed.extend_from_slice(sender);
    sealed.extend_from_slice(message);
    sealed
}

/// The sender and the message; `None` for a format that is unknown.
pub(crate) fn open(sealed: &Bytes) -> Option<(Sender, Bytes)> {
    let header = sealed.get(..HEADER)?;
    if header[0] != VERSION {
        return None;
    }
    let sender = header[1..].try_into().ok()?;
    Some((sender, sealed.slice(HEADER..)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_and_nothing_else() {
        let sealed = seal(b"12345678", b"hi");
        assert_eq!(
            open(&sealed.clone().into()),
            Some((*b"12345678", "hi".into()))
        );
        assert_eq!(
            open(&seal(b"12345678", b"").into()),
            Some((*b"12345678", Bytes::new()))
        );
        let mut newer = sealed.clone();
        newer[0] = 2;
        assert_eq!(open(&newer.into()), None);
        assert_eq!(open(&sealed[..8].to_vec().into()), None);
    }
}
