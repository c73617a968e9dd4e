//! Name patterns as in psql's `\d`: `pgbench_*`, `public.*`, `"Mixed".x?`.

use thiserror::Error;

/// Why a text is no pattern. Positions are byte offsets from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PatternError {
    /// A part without characters.
    #[error("the pattern has an empty name at byte {position}")]
    EmptyPart {
        /// Where the part should be.
        position: usize,
    },
    /// More than schema and name.
    #[error("the pattern has more than two names: a third begins at byte {position}")]
    TooManyParts {
        /// Behind the second dot.
        position: usize,
    },
    /// A quote that is not closed.
    #[error("the quote at byte {position} of the pattern is not closed")]
    UnclosedQuote {
        /// The opening quote.
        position: usize,
    },
    /// A zero byte, which PostgreSQL cannot take.
    #[error("the pattern has a zero byte at byte {position}")]
    ZeroByte {
        /// Where.
        position: usize,
    },
}

/// A parsed pattern: anchored regular expressions for PostgreSQL's `~` operator.
///
/// By psql's rules: `*` stands for any characters and `?` for one; other regular expression characters keep their
/// meaning outside quotes, but for `$` and `[]`; letters outside quotes are folded to lower case; inside quotes
/// everything is literal and `""` is a quote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    /// For the schema's name; none if the pattern has no dot (psql then takes what is visible in the search path).
    pub schema: Option<String>,
    /// For the relation's name.
    pub name: String,
}

impl Pattern {
    /// Reads a pattern.
    pub fn parse(text: &str) -> Result<Pattern, PatternError> {
        let mut schema = None;
        let mut part = Part::at(0);
        let mut quote = None;
        let mut chars = text.char_indices().peekable();
        while let Some((position, c)) = chars.next() {
            let next = chars.peek().map(|(_, next)| *next);
            match c {
                '\0' => return Err(PatternError::ZeroByte { position }),
                '"' if quote.is_some() && next == Some('"') => {
                    chars.next();
                    part.regex.push('"');
                }
                '"' => quote = if quote.is_some() { None } else { Some(position) },
                '.' if quote.is_none() => {
                    let position = position + 1;
                    if schema.is_some() {
                        return Err(PatternError::TooManyParts { position });
                    }
                    schema = Some(part.finish()?);
                    part = Part::at(position);
                }
                '*' if quote.is_none() => part.regex.push_str(".*"),
                '?' if quote.is_none() => part.regex.push('.'),
                c => {
                    let literal = quote.is_some() && "|*+?()[]{}.^\\".contains(c);
                    if literal || c == '$' || (c == '[' && next == Some(']')) {
                        part.regex.push('\\');
                    }
                    part.regex.push(if quote.is_none() {
                        c.to_ascii_lowercase()
                    } else {
                        c
                    });
                }
            }
        }
        match quote {
            Some(position) => Err(PatternError::UnclosedQuote { position }),
            None => Ok(Pattern {
                schema,
                name: part.finish()?,
            }),
        }
    }
}

struct Part {
    position: usize,
    regex: String,
}

impl Part {
    fn at(position: usize) -> Part {
        Part {
            position,
            regex: String::new(),
        }
    }

    fn finish(self) -> Result<String, PatternError> {
        match self.regex.as_str() {
            "" => Err(PatternError::EmptyPart {
                position: self.position,
            }),
            regex => Ok(format!("^({regex})$")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn reads(text: &str, schema: Option<&str>, name: &str) {
        let wanted = Pattern {
            schema: schema.map(str::to_owned),
            name: name.to_owned(),
        };
        assert_eq!(Pattern::parse(text), Ok(wanted), "{text}");
    }

    #[test]
    fn reads_what_psql_reads() {
        reads("pgbench_*", None, "^(pgbench_.*)$");
        reads("public.*", Some("^(public)$"), "^(.*)$");
        reads("\"Mixed\".x?", Some("^(Mixed)$"), "^(x.)$");
        reads("FOO", None, "^(foo)$");
        reads("FOO\"BAR\"BAZ", None, "^(fooBARbaz)$");
        reads("\"a.b\"", None, r"^(a\.b)$");
        reads("\"a\"\"b\"", None, "^(a\"b)$");
        reads("\"x*?\"", None, r"^(x\*\?)$");
        reads("a$b", None, r"^(a\$b)$");
        reads("\"a$b\"", None, r"^(a\$b)$");
        reads("(a|b)+", None, "^((a|b)+)$");
        reads("int[]", None, r"^(int\[])$");
        reads("t[0-9]", None, "^(t[0-9])$");
        reads("Ünï", None, "^(Ünï)$");
    }

    #[test]
    fn wrong_patterns_are_located() {
        assert_eq!(Pattern::parse(""), Err(PatternError::EmptyPart { position: 0 }));
        assert_eq!(Pattern::parse("a."), Err(PatternError::EmptyPart { position: 2 }));
        assert_eq!(Pattern::parse(".a"), Err(PatternError::EmptyPart { position: 0 }));
        assert_eq!(
            Pattern::parse("\"\""),
            Err(PatternError::EmptyPart { position: 0 })
        );
        assert_eq!(
            Pattern::parse("a.b.c"),
            Err(PatternError::TooManyParts { position: 4 })
        );
        assert_eq!(
            Pattern::parse("a\"b.c"),
            Err(PatternError::UnclosedQuote { position: 1 })
        );
        assert_eq!(Pattern::parse("a\0"), Err(PatternError::ZeroByte { position: 1 }));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_quoted_name_is_literal(name in "[\\PC&&[^\x00]]{1,12}") {
            let pattern = Pattern::parse(&format!("\"{}\"", name.replace('"', "\"\""))).unwrap();
            prop_assert_eq!(pattern.schema, None);
            let body = pattern.name.strip_prefix("^(").and_then(|rest| rest.strip_suffix(")$")).unwrap();
            let mut literal = String::new();
            let mut chars = body.chars();
            while let Some(c) = chars.next() {
                let special = "|*+?()[]{}.^$".contains(c);
                prop_assert!(!special, "{c} is not escaped in {body}");
                literal.extend(if c == '\\' { chars.next() } else { Some(c) });
            }
            prop_assert_eq!(literal, name);
        }

        #[test]
        fn any_text_is_judged(text in any::<String>()) {
            let _ = Pattern::parse(&text);
        }
    }
}
