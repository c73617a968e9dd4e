//! `postgresql://` URIs, as libpq's conninfo_uri_parse reads them.

use std::borrow::Cow;
use std::ops::Range;

use super::{ConninfoError, Entry, expected, is_keyword};

pub(super) fn prefix_length(text: &str) -> Option<usize> {
    ["postgresql://", "postgres://"]
        .into_iter()
        .find(|prefix| text.starts_with(prefix))
        .map(str::len)
}

/// Whether an `@` stands where only a password with an unescaped `@` or `/` is likely to have put it.
pub(super) fn has_stray_at(text: &str) -> bool {
    let prefix = prefix_length(text).unwrap_or(0);
    let after_user = user_end(text, prefix).map_or(prefix, |at| at + 1);
    text.get(after_user..).is_some_and(|rest| rest.contains('@'))
}

/// The offset of the `@` that ends `user:password`, if there is one before the first slash.
fn user_end(text: &str, from: usize) -> Option<usize> {
    let rest = text.get(from..)?;
    let at = rest.find(['@', '/'])?;
    rest.get(at..)?.starts_with('@').then_some(from + at)
}

pub(super) fn entries(text: &str, prefix: usize) -> Result<Vec<Entry<'_>>, ConninfoError> {
    let mut found = Found {
        text,
        entries: Vec::new(),
    };
    let mut at = prefix;
    if let Some(end) = user_end(text, at) {
        let user_ends = found.next_of(at, &[':', '@']).min(end);
        found.add("user", at..user_ends)?;
        if user_ends < end {
            found.add("password", user_ends + 1..end)?;
        }
        at = end + 1;
    }
    at = found.hosts(at)?;
    if found.char_at(at) == Some('/') {
        let end = found.next_of(at, &['?']);
        found.add("dbname", at + 1..end)?;
        at = end;
    }
    if found.char_at(at) == Some('?') {
        found.parameters(at + 1)?;
    }
    Ok(found.entries)
}

struct Found<'t> {
    text: &'t str,
    entries: Vec<Entry<'t>>,
}

impl<'t> Found<'t> {
    fn slice(&self, span: Range<usize>) -> &'t str {
        self.text.get(span).unwrap_or_default()
    }

    fn char_at(&self, at: usize) -> Option<char> {
        self.text.get(at..)?.chars().next()
    }

    /// The offset of the first of these characters from `from` on, or the end.
    fn next_of(&self, from: usize, stops: &[char]) -> usize {
        let rest = self.slice(from..self.text.len());
        rest.find(stops).map_or(self.text.len(), |at| from + at)
    }

    /// Adds the decoded text of the span, unless it is empty.
    fn add(&mut self, keyword: &'static str, span: Range<usize>) -> Result<(), ConninfoError> {
        let value = decode(self.slice(span.clone()), span.start)?;
        if !value.is_empty() {
            self.entries.push(Entry {
                keyword: Cow::Borrowed(keyword),
                value,
                span,
            });
        }
        Ok(())
    }

    /// `host:port,host:port`, each part optional; libpq wants both lists of the same length.
    fn hosts(&mut self, start: usize) -> Result<usize, ConninfoError> {
        let (mut hosts, mut ports) = (String::new(), String::new());
        let mut at = start;
        loop {
            let host;
            if self.char_at(at) == Some('[') {
                let close = self.next_of(at, &[']']);
                if close == self.text.len() {
                    return Err(expected(close, "\"]\" after an IPv6 address"));
                }
                if close == at + 1 {
                    return Err(expected(close, "an IPv6 address"));
                }
                host = at + 1..close;
                at = close + 1;
                if !matches!(self.char_at(at), None | Some(':' | '/' | '?' | ',')) {
                    return Err(expected(
                        at,
                        "\":\", \"/\", \"?\", \",\" or the end after an IPv6 address",
                    ));
                }
            } else {
                let end = self.next_of(at, &[':', '/', '?', ',']);
                host = at..end;
                at = end;
            }
            hosts.push_str(&decode(self.slice(host.clone()), host.start)?);
            if self.char_at(at) == Some(':') {
                let end = self.next_of(at, &['/', '?', ',']);
                ports.push_str(&decode(self.slice(at + 1..end), at + 1)?);
                at = end;
            }
            if self.char_at(at) != Some(',') {
                break;
            }
            hosts.push(',');
            ports.push(',');
            at += 1;
        }
        for (keyword, value) in [("host", hosts), ("port", ports)] {
            if !value.is_empty() {
                let (keyword, value) = (Cow::Borrowed(keyword), Cow::Owned(value));
                self.entries.push(Entry {
                    keyword,
                    value,
                    span: start..at,
                });
            }
        }
        Ok(at)
    }

    /// `keyword=value&keyword=value` up to the end.
    fn parameters(&mut self, start: usize) -> Result<(), ConninfoError> {
        let mut at = start;
        while at < self.text.len() {
            let end = self.next_of(at, &['&']);
            let equals = self.next_of(at, &['=', '&']);
            if self.char_at(equals) != Some('=') {
                return Err(expected(equals, "\"=\" after a URI parameter's name"));
            }
            let span = equals + 1..end;
            if let Some(extra) = self.slice(span.clone()).find('=') {
                return Err(expected(
                    span.start + extra,
                    "\"&\" or the end of a URI parameter's value",
                ));
            }
            let keyword = decode(self.slice(at..equals), at)?;
            if !is_keyword(&keyword) {
                return Err(expected(
                    at,
                    "a URI parameter's name of letters, digits and underscores",
                ));
            }
            let value = decode(self.slice(span.clone()), span.start)?;
            // JDBC's spelling, which libpq takes too.
            let entry = if keyword == "ssl" && value == "true" {
                Entry {
                    keyword: Cow::Borrowed("sslmode"),
                    value: Cow::Borrowed("require"),
                    span,
                }
            } else {
                Entry { keyword, value, span }
            };
            self.entries.push(entry);
            at = end + 1;
        }
        Ok(())
    }
}

/// Resolves percent-encoding; `start` is where `text` stands in the whole string.
fn decode(text: &str, start: usize) -> Result<Cow<'_, str>, ConninfoError> {
    if !text.contains('%') {
        return Ok(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte != b'%' {
            bytes.push(byte);
            rest = after;
            continue;
        }
        let position = start + text.len() - rest.len();
        let digits = after.split_first_chunk::<2>();
        let code = digits.and_then(|(&[high, low], _)| Some(hex_digit(high)? << 4 | hex_digit(low)?));
        match (code, digits) {
            (Some(code @ 1..), Some((_, after))) => {
                bytes.push(code);
                rest = after;
            }
            _ => {
                return Err(expected(
                    position,
                    "\"%\" and two hexadecimal digits other than 00",
                ));
            }
        }
    }
    String::from_utf8(bytes)
        .map(Cow::Owned)
        .map_err(|_| expected(start, "percent-encoded UTF-8"))
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}
