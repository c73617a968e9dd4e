//! What may follow a command. One set for all commands: each reads what concerns it.

use anyhow::{Context, Result, bail};

use crate::server::Major;

#[derive(Debug, Default, Clone)]
pub(crate) struct Arguments {
    /// `demo down` and the like.
    pub(crate) words: Vec<String>,
    pub(crate) pg: Option<Major>,
    pub(crate) release: bool,
    pub(crate) long: bool,
    pub(crate) only: Option<String>,
    pub(crate) seed: Option<u64>,
    pub(crate) parts: Option<Vec<String>>,
    pub(crate) jobs: Option<usize>,
    pub(crate) keep: bool,
    pub(crate) accept: bool,
    pub(crate) write: bool,
    pub(crate) seconds: Option<u64>,
    pub(crate) rounds: Option<usize>,
    pub(crate) transactions: Option<usize>,
}

impl Arguments {
    pub(crate) fn parse(words: impl Iterator<Item = String>) -> Result<Self> {
        let mut parsed = Self::default();
        let mut words = words.flat_map(|word| match word.split_once('=') {
            Some((name, value)) if name.starts_with("--") => vec![name.to_owned(), value.to_owned()],
            _ => vec![word],
        });
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value"));
            match word.as_str() {
                "--pg" => parsed.pg = Some(value()?.parse()?),
                "--release" => parsed.release = true,
                "--long" => parsed.long = true,
                "--only" => parsed.only = Some(value()?),
                "--seed" => parsed.seed = Some(number(&word, &value()?)?),
                "--parts" => parsed.parts = Some(value()?.split(',').map(str::to_owned).collect()),
                "--jobs" => parsed.jobs = Some(number(&word, &value()?)?),
                "--keep" => parsed.keep = true,
                "--accept" => parsed.accept = true,
                "--write" => parsed.write = true,
                "--seconds" => parsed.seconds = Some(number(&word, &value()?)?),
                "--rounds" => parsed.rounds = Some(number(&word, &value()?)?),
                "--transactions" => parsed.transactions = Some(number(&word, &value()?)?),
                unknown if unknown.starts_with('-') => bail!("unknown option {unknown}"),
                _ => parsed.words.push(word),
            }
        }
        Ok(parsed)
    }
}

fn number<T: std::str::FromStr>(option: &str, value: &str) -> Result<T> {
    value
        .parse()
        .ok()
        .with_context(|| format!("{option} wants a number, not {value:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments> {
        Arguments::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn takes_both_forms_of_a_value() {
        let parsed = parse("--pg=17 --only walkthrough --seed 42 down").unwrap();
        assert_eq!(parsed.pg.unwrap().number(), 17);
        assert_eq!(parsed.only.as_deref(), Some("walkthrough"));
        assert_eq!(parsed.seed, Some(42));
        assert_eq!(parsed.words, ["down"]);
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        assert!(parse("--fast").is_err());
        assert!(parse("--pg 14").is_err());
        assert!(parse("--seed many").is_err());
        assert!(parse("--only").is_err());
    }
}
