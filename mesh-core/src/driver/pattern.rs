//! Which names an exposure covers.

use std::fmt;

use regex::Regex;

/// A set of names: one exactly, or all that match a regular expression.
///
/// ```
/// use mesh_core::driver::Pattern;
///
/// assert!(Pattern::exact("chat:1").matches("chat:1"));
/// assert!(Pattern::regex(r"^chat:.+$")?.matches("chat:1"));
/// assert!(!Pattern::from("chat:.+").matches("chat:1"), "a plain string is a name, not an expression");
/// # Ok::<(), mesh_core::driver::PatternError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Pattern(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Exact(Box<str>),
    Regex(Regex),
}

impl Pattern {
    /// This name alone.
    pub fn exact(name: impl Into<String>) -> Self {
        Self(Kind::Exact(name.into().into_boxed_str()))
    }

    /// All names in which the expression finds a match; anchor it with `^…$` to match names as a whole.
    ///
    /// The syntax is that of the crate `regex`, whose matching takes time linear in the name.
    ///
    /// # Errors
    /// [`PatternError`] if the expression is none, or too large.
    pub fn regex(expression: &str) -> Result<Self, PatternError> {
        match Regex::new(expression) {
            Ok(regex) => Ok(Self(Kind::Regex(regex))),
            Err(error) => Err(PatternError {
                expression: expression.to_owned(),
                reason: error.to_string(),
            }),
        }
    }

    /// Is this name one of the set?
    pub fn matches(&self, name: &str) -> bool {
        match &self.0 {
            Kind::Exact(exact) => **exact == *name,
            Kind::Regex(regex) => regex.is_match(name),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Exact(name) => write!(f, "{name:?}"),
            Kind::Regex(regex) => write!(f, "/{regex}/"),
        }
    }
}

impl From<&str> for Pattern {
    fn from(name: &str) -> Self {
        Self::exact(name)
    }
}

impl From<String> for Pattern {
    fn from(name: String) -> Self {
        Self::exact(name)
    }
}

/// A regular expression that is none.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{expression:?} is no regular expression: {reason}")]
pub struct PatternError {
    /// The expression.
    pub expression: String,
    /// What is wrong with it.
    pub reason: String,
}
