//! Body of the fuzz target of what instances tell each other; no part of the API that versions promise.

use super::Relay;

/// Any bytes as a message: what can be read is written again as it was, and nothing that is shorter or longer is the same message.
///
/// # Panics
/// It does not.
pub fn decoding(data: &[u8]) {
    let Some(relay) = Relay::decode(data) else {
        return;
    };
    assert_eq!(relay.encode(), data, "{relay:?}");
    if let Some((_, shorter)) = data.split_last() {
        assert_eq!(Relay::decode(shorter), None);
    }
    let longer = [data, &[0]].concat();
    assert_eq!(Relay::decode(&longer), None);
}
