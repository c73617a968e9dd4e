//! `keyword = value` strings, as libpq's conninfo_parse reads them.

use std::borrow::Cow;

use super::{ConninfoError, Entry, expected, is_keyword};

/// What C's isspace takes for a blank.
pub(super) fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0B' | '\x0C')
}

pub(super) fn entries(text: &str) -> Result<Vec<Entry<'_>>, ConninfoError> {
    let mut found = Vec::new();
    let mut at = skip_blanks(text, 0);
    while at < text.len() {
        let (keyword, after_keyword) = take_while(text, at, |c| c != '=' && !is_blank(c));
        let equals = skip_blanks(text, after_keyword);
        if !text.get(equals..).is_some_and(|rest| rest.starts_with('=')) {
            return Err(expected(equals, "\"=\" after a keyword"));
        }
        if !is_keyword(keyword) {
            return Err(expected(at, "a keyword of letters, digits and underscores"));
        }
        let start = skip_blanks(text, equals + 1);
        let (value, end) = value(text, start)?;
        found.push(Entry {
            keyword: Cow::Borrowed(keyword),
            value: Cow::Owned(value),
            span: start..end,
        });
        at = skip_blanks(text, end);
    }
    Ok(found)
}

/// The value that begins at `start`, unescaped, and the offset behind it.
fn value(text: &str, start: usize) -> Result<(String, usize), ConninfoError> {
    let rest = text.get(start..).unwrap_or_default();
    let quoted = rest.starts_with('\'');
    let mut chars = rest.char_indices().skip(usize::from(quoted));
    let mut value = String::new();
    while let Some((offset, c)) = chars.next() {
        match c {
            '\'' if quoted => return Ok((value, start + offset + 1)),
            // A backslash takes the next character as it is; at the very end it stands for nothing.
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            c if !quoted && is_blank(c) => return Ok((value, start + offset)),
            c => value.push(c),
        }
    }
    if quoted {
        return Err(expected(text.len(), "the closing quote of a value"));
    }
    Ok((value, text.len()))
}

fn take_while(text: &str, from: usize, wanted: impl Fn(char) -> bool) -> (&str, usize) {
    let rest = text.get(from..).unwrap_or_default();
    let length = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
    (rest.get(..length).unwrap_or_default(), from + length)
}

fn skip_blanks(text: &str, from: usize) -> usize {
    take_while(text, from, is_blank).1
}

pub(super) fn write<'s>(settings: impl Iterator<Item = (&'s str, &'s str)>) -> String {
    let mut text = String::new();
    for (keyword, value) in settings {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(keyword);
        text.push('=');
        let plain = !value.is_empty() && !value.contains(|c| is_blank(c) || c == '\'' || c == '\\');
        if plain {
            text.push_str(value);
            continue;
        }
        text.push('\'');
        for c in value.chars() {
            if c == '\'' || c == '\\' {
                text.push('\\');
            }
            text.push(c);
        }
        text.push('\'');
    }
    text
}
