//! What is wrong with a document, where, and what would be right. Readers collect every finding before giving up.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Pos {
    pub line: u32,
    pub column: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Error,
    Warning,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diag {
    pub severity: Severity,
    pub at: Pos,
    /// Path of the field, as in `services[0].routes[1].timeout`.
    pub field: String,
    pub message: String,
    /// What would be right.
    pub hint: Option<String>,
}

impl fmt::Display for Diag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "line {}: {kind}: ", self.at.line)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

#[derive(Debug, Default)]
pub struct Diags(pub Vec<Diag>, bool);

impl Diags {
    /// For documents that a newer program may have written: fields that nobody here knows are warnings.
    pub fn tolerant() -> Self {
        Self(Vec::new(), true)
    }

    pub fn unknown_field(&mut self, at: Pos, field: &str, hint: String) {
        match self.1 {
            true => self.warn(at, field, "unknown field, passed over", Some(hint)),
            false => self.error(at, field, "unknown field", Some(hint)),
        }
    }

    pub fn error(&mut self, at: Pos, field: &str, message: impl Into<String>, hint: Option<String>) {
        self.0.push(Diag { severity: Severity::Error, at, field: field.into(), message: message.into(), hint });
    }

    pub fn warn(&mut self, at: Pos, field: &str, message: impl Into<String>, hint: Option<String>) {
        self.0.push(Diag { severity: Severity::Warning, at, field: field.into(), message: message.into(), hint });
    }

    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|d| d.severity == Severity::Error)
    }
}
