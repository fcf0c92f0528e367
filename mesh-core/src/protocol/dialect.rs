//! The names of built-in commands and events.

/// The prefix that tells one dialect of the protocol from another (`protocol.md`, section 10).
///
/// ```
/// use mesh_core::protocol::Dialect;
///
/// assert_eq!(Dialect::MESH.name("noop"), "mesh/noop");
/// assert_eq!(Dialect::MESH.strip("mesh/join-room"), Some("join-room"));
/// assert_eq!(Dialect::MESH.strip("join-room"), None);
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Dialect {
    prefix: &'static str,
}

impl Dialect {
    /// The dialect of this project and of the original library: `mesh/`.
    pub const MESH: Self = Self { prefix: "mesh/" };

    /// A dialect of another prefix, with its slash.
    pub const fn new(prefix: &'static str) -> Self {
        Self { prefix }
    }

    /// The prefix, with its slash.
    pub const fn prefix(self) -> &'static str {
        self.prefix
    }

    /// The full name of a built-in command or event.
    pub fn name(self, bare: &str) -> String {
        format!("{}{bare}", self.prefix)
    }

    /// The bare name of a built-in, or `None` for any other name.
    pub fn strip(self, name: &str) -> Option<&str> {
        name.strip_prefix(self.prefix)
    }
}

impl Default for Dialect {
    fn default() -> Self {
        Self::MESH
    }
}

#[cfg(test)]
mod tests {
    use super::Dialect;

    #[test]
    fn a_dialect_is_its_prefix() {
        assert_eq!(Dialect::default().prefix(), "mesh/");
        assert_eq!(Dialect::new("other/").prefix(), "other/");
        assert_eq!(Dialect::new("other/").name("noop"), "other/noop");
    }
}
