//! libpq connection strings: read, shown without secrets, completed, written.
//!
//! Both of libpq's syntaxes are read by libpq's own rules: `host=a password='it''s'`-like keyword/value strings (with
//! backslash escapes) and `postgresql://user:password@host1:5432,host2/dbname?option=value` URIs. Keywords are not
//! checked against a list, because newer servers know more of them; libpq itself rejects the ones it does not know.

mod keyword_value;
#[cfg(test)]
mod tests;
mod uri;

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use thiserror::Error;

/// What stands in place of a secret.
pub const MASK: &str = "********";
/// What [`mask`] returns for a string whose secrets it cannot find for sure.
pub const HIDDEN: &str = "(connection string that cannot be shown safely)";

/// Why a text is no connection string. Never has any part of the text, which may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ConninfoError {
    /// Something else should stand at `position`.
    #[error("invalid connection string: expected {expected} at byte {position}")]
    Expected {
        /// Byte offset in the text, from 0.
        position: usize,
        /// What should be there.
        expected: &'static str,
    },
    /// A keyword that was passed to [`Conninfo::set`] has characters that keywords cannot have.
    #[error("a connection keyword can only have letters, digits and underscores")]
    Keyword,
    /// A value that was passed to [`Conninfo::set`] has a zero byte.
    #[error("a connection value cannot have a zero byte")]
    ZeroByte,
}

fn expected(position: usize, expected: &'static str) -> ConninfoError {
    ConninfoError::Expected { position, expected }
}

/// One setting as it stands in the text.
struct Entry<'t> {
    keyword: Cow<'t, str>,
    value: Cow<'t, str>,
    /// Where the value stands in the text, quotes included.
    span: Range<usize>,
}

fn entries(text: &str) -> Result<Vec<Entry<'_>>, ConninfoError> {
    if let Some(position) = text.find('\0') {
        return Err(expected(position, "a character other than zero"));
    }
    match uri::prefix_length(text) {
        Some(prefix) => uri::entries(text, prefix),
        None => keyword_value::entries(text),
    }
}

/// Whether the value of this keyword must never be shown: passwords, client secrets, SCRAM keys.
pub fn is_secret(keyword: &str) -> bool {
    let keyword = keyword.to_ascii_lowercase();
    keyword.contains("password") || keyword.contains("secret") || keyword.starts_with("scram_")
}

/// `text` with the values of all secrets replaced by [`MASK`] and the rest as it is; [`HIDDEN`] where the text does
/// not parse, or parses in a way that suggests an unescaped `@` in a password.
pub fn mask(text: &str) -> String {
    let Ok(entries) = entries(text) else {
        return HIDDEN.to_owned();
    };
    let is_uri = uri::prefix_length(text).is_some();
    if is_uri && uri::has_stray_at(text) {
        return HIDDEN.to_owned();
    }
    let mut shown = String::with_capacity(text.len());
    let mut copied = 0;
    for entry in entries.iter().filter(|entry| hides(entry)) {
        shown.push_str(text.get(copied..entry.span.start).unwrap_or_default());
        shown.push_str(MASK);
        copied = entry.span.end;
        // libpq lets the next keyword touch a closing quote.
        let follower = text.get(copied..).unwrap_or_default();
        if !is_uri && follower.starts_with(|c| !keyword_value::is_blank(c)) {
            shown.push(' ');
        }
    }
    shown.push_str(text.get(copied..).unwrap_or_default());
    shown
}

/// Also a `dbname` that is itself a connection string (libpq expands those in some calls).
fn hides(entry: &Entry<'_>) -> bool {
    let nested = || entry.value.contains('=') || uri::prefix_length(&entry.value).is_some();
    is_secret(&entry.keyword) || (entry.keyword == "dbname" && nested())
}

/// A connection string's settings, in the order in which they were given; of a keyword given twice the last value
/// counts, as in libpq. `Debug` shows no secrets; there is no `Display`, so that nothing is logged by accident.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Conninfo {
    settings: Vec<(String, String)>,
}

impl Conninfo {
    /// Reads either syntax.
    pub fn parse(text: &str) -> Result<Conninfo, ConninfoError> {
        let mut conninfo = Conninfo::default();
        for entry in entries(text)? {
            conninfo.put(entry.keyword.into_owned(), entry.value.into_owned());
        }
        Ok(conninfo)
    }

    /// The value of a keyword, without quoting or encoding.
    pub fn get(&self, keyword: &str) -> Option<&str> {
        self.settings
            .iter()
            .find(|(known, _)| known == keyword)
            .map(|(_, value)| value.as_str())
    }

    /// All settings in order, secrets included.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.settings
            .iter()
            .map(|(keyword, value)| (keyword.as_str(), value.as_str()))
    }

    /// Gives a keyword a value, whether or not it had one.
    pub fn set(&mut self, keyword: &str, value: &str) -> Result<(), ConninfoError> {
        if !is_keyword(keyword) {
            return Err(ConninfoError::Keyword);
        }
        if value.contains('\0') {
            return Err(ConninfoError::ZeroByte);
        }
        self.put(keyword.to_owned(), value.to_owned());
        Ok(())
    }

    /// Gives a keyword a value unless it has one.
    pub fn set_default(&mut self, keyword: &str, value: &str) -> Result<(), ConninfoError> {
        match self.get(keyword) {
            Some(_) => Ok(()),
            None => self.set(keyword, value),
        }
    }

    /// Takes a setting out and returns its value.
    pub fn remove(&mut self, keyword: &str) -> Option<String> {
        let at = self.settings.iter().position(|(known, _)| known == keyword)?;
        Some(self.settings.remove(at).1)
    }

    /// The settings as a keyword/value string that libpq reads back to exactly these settings. With secrets.
    pub fn to_conninfo(&self) -> String {
        keyword_value::write(self.iter())
    }

    /// The same with secrets replaced by [`MASK`].
    pub fn to_masked(&self) -> String {
        mask(&self.to_conninfo())
    }

    fn put(&mut self, keyword: String, value: String) {
        match self.settings.iter_mut().find(|(known, _)| *known == keyword) {
            Some(setting) => setting.1 = value,
            None => self.settings.push((keyword, value)),
        }
    }
}

impl FromStr for Conninfo {
    type Err = ConninfoError;

    fn from_str(text: &str) -> Result<Conninfo, ConninfoError> {
        Conninfo::parse(text)
    }
}

impl fmt::Debug for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Conninfo({})", self.to_masked())
    }
}

fn is_keyword(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
