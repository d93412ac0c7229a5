//! What went wrong and what to do about it, for the person at the keyboard.

use std::fmt;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug)]
pub struct Error {
    message: String,
    hint: String,
    is_conflict: bool,
}

impl Error {
    /// `hint` says what to do next.
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into(), is_conflict: false }
    }

    /// Somebody else has changed it meanwhile: who looks again may succeed.
    pub fn conflict(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { is_conflict: true, ..Self::new(message, hint) }
    }

    pub fn is_conflict(&self) -> bool {
        self.is_conflict
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, "\n  try: {}", self.hint) }
    }
}

impl From<String> for Error {
    fn from(message: String) -> Self {
        Self::new(message, "")
    }
}

/// Says what was being done when the system refused.
pub trait During<T> {
    fn during(self, what: impl fmt::Display) -> Result<T>;
}

impl<T> During<T> for std::io::Result<T> {
    fn during(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|e| format!("{what}: {e}").into())
    }
}
