//! Rust source with what is not code blanked out, line by line, so that a scan does not trip over words in
//! comments and strings.

pub(crate) struct Masked {
    /// Comments blanked, strings kept.
    pub(crate) without_comments: Vec<String>,
    /// Comments and the contents of strings blanked.
    pub(crate) code: Vec<String>,
}

#[derive(Clone, Copy, PartialEq)]
enum Inside {
    Code,
    LineComment,
    BlockComment(usize),
    Text,
    RawText(usize),
}

pub(crate) fn mask(source: &str) -> Masked {
    let characters: Vec<char> = source.chars().collect();
    let at = |index: usize| characters.get(index).copied().unwrap_or('\0');
    let mut without_comments = String::with_capacity(source.len());
    let mut code = String::with_capacity(source.len());
    let mut inside = Inside::Code;
    let mut index = 0;
    while index < characters.len() {
        let character = at(index);
        // How many characters this step takes, and what state follows it.
        let (length, next) = match inside {
            Inside::Code => match character {
                '/' if at(index + 1) == '/' => (2, Inside::LineComment),
                '/' if at(index + 1) == '*' => (2, Inside::BlockComment(1)),
                '"' => (1, Inside::Text),
                'r' if !joined(&characters, index) => match raw_start(&characters, index + 1) {
                    Some(hashes) => (hashes + 2, Inside::RawText(hashes)),
                    None => (1, Inside::Code),
                },
                'b' | 'c' if !joined(&characters, index) && at(index + 1) == 'r' => {
                    match raw_start(&characters, index + 2) {
                        Some(hashes) => (hashes + 3, Inside::RawText(hashes)),
                        None => (1, Inside::Code),
                    }
                }
                '\'' => (character_literal(&characters, index), Inside::Code),
                _ => (1, Inside::Code),
            },
            Inside::LineComment if character == '\n' => (1, Inside::Code),
            Inside::BlockComment(depth) if character == '*' && at(index + 1) == '/' => (
                2,
                if depth == 1 {
                    Inside::Code
                } else {
                    Inside::BlockComment(depth - 1)
                },
            ),
            Inside::BlockComment(depth) if character == '/' && at(index + 1) == '*' => {
                (2, Inside::BlockComment(depth + 1))
            }
            Inside::Text if character == '\\' => (2, Inside::Text),
            Inside::Text if character == '"' => (1, Inside::Code),
            Inside::RawText(hashes)
                if character == '"' && (1..=hashes).all(|offset| at(index + offset) == '#') =>
            {
                (hashes + 1, Inside::Code)
            }
            same => (1, same),
        };
        let opened = inside == Inside::Code && next != Inside::Code;
        let comment = |state| matches!(state, Inside::LineComment | Inside::BlockComment(_));
        let text = |state| matches!(state, Inside::Text | Inside::RawText(_));
        for offset in 0..length.min(characters.len() - index) {
            let character = at(index + offset);
            let blank = if character == '\n' { '\n' } else { ' ' };
            let in_comment = comment(inside) || (opened && comment(next));
            without_comments.push(if in_comment { blank } else { character });
            let literal = length > 1 && inside == Inside::Code && next == Inside::Code;
            code.push(if in_comment || text(inside) || literal {
                blank
            } else {
                character
            });
        }
        inside = next;
        index += length;
    }
    Masked {
        without_comments: without_comments.lines().map(str::to_owned).collect(),
        code: code.lines().map(str::to_owned).collect(),
    }
}

/// Whether the character continues a word.
fn joined(characters: &[char], index: usize) -> bool {
    index
        .checked_sub(1)
        .and_then(|before| characters.get(before))
        .is_some_and(|character| character.is_alphanumeric() || *character == '_')
}

/// The number of `#` if a raw string's quote follows.
fn raw_start(characters: &[char], from: usize) -> Option<usize> {
    let hashes = characters
        .iter()
        .skip(from)
        .take_while(|character| **character == '#')
        .count();
    (characters.get(from + hashes) == Some(&'"')).then_some(hashes)
}

/// The length of a character literal, or 1 if the quote starts a lifetime.
fn character_literal(characters: &[char], index: usize) -> usize {
    match (characters.get(index + 1), characters.get(index + 2)) {
        (Some('\\'), _) => {
            let rest = characters
                .iter()
                .skip(index + 3)
                .take(12)
                .position(|character| *character == '\'');
            rest.map_or(1, |position| position + 4)
        }
        (Some(_), Some('\'')) => 3,
        _ => 1,
    }
}

/// Whether `word` stands in the line by itself, not as part of a longer name.
pub(crate) fn has_word(line: &str, word: &str) -> bool {
    let part_of_name = |character: Option<char>| character.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(start, _)| {
        let before = line.get(..start).and_then(|text| text.chars().next_back());
        let after = line
            .get(start + word.len()..)
            .and_then(|text| text.chars().next());
        !part_of_name(before) && !part_of_name(after)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(source: &str) -> String {
        mask(source).code.join("\n")
    }

    #[test]
    fn blanks_comments_and_strings() {
        assert_eq!(code("a // unsafe\nb"), "a          \nb");
        assert_eq!(code("a /* x /* unsafe */ y */ b").replace(' ', ""), "ab");
        assert!(!code(r#"f("unsafe \" unsafe") + 1"#).contains("unsafe"));
        assert!(!code("f(r##\"unsafe \"# unsafe\"##)").contains("unsafe"));
        assert!(code("f('\"') unsafe").contains("unsafe"));
        assert!(code("f('\\'') unsafe \"x\"").contains("unsafe"));
        assert!(code("fn f<'a>(x: &'a str) { unsafe }").contains("unsafe"));
        assert!(code("let r = var\"\"; unsafe").contains("unsafe"));
    }

    #[test]
    fn keeps_strings_where_asked() {
        let masked = mask("#[cfg(feature = \"x\")] // feature = \"y\"");
        let line = masked.without_comments.join("");
        assert!(line.contains("\"x\"") && !line.contains("\"y\""));
    }

    #[test]
    fn words_are_whole() {
        assert!(has_word("unsafe {", "unsafe"));
        assert!(!has_word("allow(unsafe_code)", "unsafe"));
        assert!(!has_word("is_unsafe", "unsafe"));
    }
}
