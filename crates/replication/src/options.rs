//! What a subscriber asks of the provider's output plugin when it starts a stream, and what they agree on.

use std::fmt::Display;
use std::str::FromStr;

use pg_ha_model::{Lsn, NodeId, NodeNameError, validate_node_name};
use thiserror::Error;

use crate::codec::{PROTOCOL_MAX, PROTOCOL_MIN};

/// Why options were refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OptionError {
    /// An option that this version does not know.
    #[error("unknown pg_ha output plugin option \"{name}\"")]
    Unknown {
        /// Its name.
        name: String,
    },
    /// An option given twice.
    #[error("pg_ha output plugin option \"{name}\" given twice")]
    Repeated {
        /// Its name.
        name: &'static str,
    },
    /// An option that must be given.
    #[error("pg_ha output plugin option \"{name}\" is missing")]
    Missing {
        /// Its name.
        name: &'static str,
    },
    /// A value that does not fit its option.
    #[error("pg_ha output plugin option \"{name}\" is \"{found}\", wanted: {wanted}")]
    Invalid {
        /// The option's name.
        name: &'static str,
        /// The value.
        found: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// A node name that no node can have.
    #[error("pg_ha output plugin option \"node_name\": {0}")]
    NodeName(#[from] NodeNameError),
    /// No protocol version that both ends speak.
    #[error(
        "no common pg_ha protocol version: the subscriber \"{node_name}\" (pg_ha {extension_version}) speaks \
         {theirs_min} to {theirs_max}, the provider speaks {ours_min} to {ours_max}"
    )]
    NoCommonProtocol {
        /// The subscriber's node.
        node_name: String,
        /// The subscriber's extension version.
        extension_version: String,
        /// The subscriber's lowest version.
        theirs_min: u16,
        /// The subscriber's highest version.
        theirs_max: u16,
        /// The provider's lowest version.
        ours_min: u16,
        /// The provider's highest version.
        ours_max: u16,
    },
}

/// The options of START_REPLICATION, from the subscriber.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginOptions {
    /// The lowest protocol version it speaks.
    pub proto_min: u16,
    /// The highest protocol version it speaks.
    pub proto_max: u16,
    /// Its server_version_num, e.g. 150020.
    pub server_version_num: u32,
    /// Its extension version, e.g. `0.1.0`.
    pub extension_version: String,
    /// Its node.
    pub node_id: NodeId,
    /// Its node's name.
    pub node_name: String,
    /// Which node it takes the provider for: the uid that the provider's catalog had when the subscription was made.
    pub provider_uid: String,
    /// Up to here the provider's changes are applied on it; [`Lsn::INVALID`] before the first one.
    pub applied_lsn: Lsn,
    /// The encoding it wants text in: its database's, by PostgreSQL's name, e.g. `UTF8`.
    pub encoding: String,
    /// The replication sets it wants; may be empty.
    pub replication_sets: Vec<String>,
    /// The origins whose changes it wants besides the provider's own; may be empty.
    pub forward_origins: Vec<String>,
    /// Whether it takes large transactions while they are in progress.
    pub streaming: bool,
    /// Whether it takes prepared transactions when they are prepared.
    pub two_phase: bool,
}

impl PluginOptions {
    /// The options as START_REPLICATION takes them, in a fixed order. Values still need quoting as SQL literals.
    pub fn to_pairs(&self) -> Vec<(String, String)> {
        [
            ("proto_min", self.proto_min.to_string()),
            ("proto_max", self.proto_max.to_string()),
            ("server_version_num", self.server_version_num.to_string()),
            ("extension_version", self.extension_version.clone()),
            ("node_id", self.node_id.to_string()),
            ("node_name", self.node_name.clone()),
            ("provider_uid", self.provider_uid.clone()),
            ("applied_lsn", self.applied_lsn.to_string()),
            ("encoding", self.encoding.clone()),
            ("replication_sets", write_list(&self.replication_sets)),
            ("forward_origins", write_list(&self.forward_origins)),
            ("streaming", self.streaming.to_string()),
            ("two_phase", self.two_phase.to_string()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }

    /// Reads what [`Self::to_pairs`] wrote, in any order; the last three may be absent. An unknown option is an
    /// error: what the subscriber asks for must never be ignored.
    pub fn from_pairs<'p>(
        pairs: impl IntoIterator<Item = (&'p str, &'p str)>,
    ) -> Result<PluginOptions, OptionError> {
        let mut given = [None; NAMES.len()];
        for (name, value) in pairs {
            let known = NAMES.iter().zip(&mut given).find(|(known, _)| **known == name);
            let (name, slot) = known.ok_or_else(|| OptionError::Unknown {
                name: name.to_owned(),
            })?;
            if slot.replace(value).is_some() {
                return Err(OptionError::Repeated { name });
            }
        }
        let [
            proto_min,
            proto_max,
            version_num,
            version,
            node_id,
            node_name,
            provider_uid,
            applied_lsn,
            encoding,
            sets,
            origins,
            streaming,
            two_phase,
        ] = given;
        let proto_min: u16 = number("proto_min", proto_min)?;
        let proto_max: u16 = number("proto_max", proto_max)?;
        if proto_min > proto_max {
            let (found, wanted) = (proto_max.to_string(), "a version not below proto_min");
            return Err(OptionError::Invalid {
                name: "proto_max",
                found,
                wanted,
            });
        }
        let id = number("node_id", node_id)?;
        let node_id = NodeId::new(id).map_err(|_| OptionError::Invalid {
            name: "node_id",
            found: id.to_string(),
            wanted: "a number from 1 to 1023",
        })?;
        let node_name = text("node_name", node_name)?;
        validate_node_name(&node_name)?;
        Ok(PluginOptions {
            proto_min,
            proto_max,
            server_version_num: number("server_version_num", version_num)?,
            extension_version: text("extension_version", version)?,
            node_id,
            node_name,
            provider_uid: text("provider_uid", provider_uid)?,
            applied_lsn: position("applied_lsn", applied_lsn)?,
            encoding: text("encoding", encoding)?,
            replication_sets: list("replication_sets", required("replication_sets", sets)?)?,
            forward_origins: list("forward_origins", origins.unwrap_or_default())?,
            streaming: boolean("streaming", streaming)?,
            two_phase: boolean("two_phase", two_phase)?,
        })
    }
}

const NAMES: [&str; 13] = [
    "proto_min",
    "proto_max",
    "server_version_num",
    "extension_version",
    "node_id",
    "node_name",
    "provider_uid",
    "applied_lsn",
    "encoding",
    "replication_sets",
    "forward_origins",
    "streaming",
    "two_phase",
];

/// What the provider speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProviderVersions {
    /// The lowest protocol version.
    pub proto_min: u16,
    /// The highest protocol version.
    pub proto_max: u16,
    /// Its server_version_num, e.g. 160014.
    pub server_version_num: u32,
}

impl ProviderVersions {
    /// This code's protocol versions on a server of this server_version_num.
    pub fn of_this_build(server_version_num: u32) -> ProviderVersions {
        ProviderVersions {
            proto_min: PROTOCOL_MIN,
            proto_max: PROTOCOL_MAX,
            server_version_num,
        }
    }
}

/// What both ends will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// The protocol version: the highest that both speak.
    pub protocol: u16,
    /// Whether values without a plain form may go in their type's binary form: both servers are of one major version.
    pub binary: bool,
}

/// Agrees with a subscriber, on the provider.
pub fn negotiate(subscriber: &PluginOptions, provider: &ProviderVersions) -> Result<Agreed, OptionError> {
    let protocol = subscriber.proto_max.min(provider.proto_max);
    if protocol < subscriber.proto_min.max(provider.proto_min) {
        return Err(OptionError::NoCommonProtocol {
            node_name: subscriber.node_name.clone(),
            extension_version: subscriber.extension_version.clone(),
            theirs_min: subscriber.proto_min,
            theirs_max: subscriber.proto_max,
            ours_min: provider.proto_min,
            ours_max: provider.proto_max,
        });
    }
    let binary = subscriber.server_version_num / 10_000 == provider.server_version_num / 10_000;
    Ok(Agreed { protocol, binary })
}

fn required<'p>(name: &'static str, value: Option<&'p str>) -> Result<&'p str, OptionError> {
    value.ok_or(OptionError::Missing { name })
}

fn text(name: &'static str, value: Option<&str>) -> Result<String, OptionError> {
    match required(name, value)? {
        "" => Err(OptionError::Invalid {
            name,
            found: String::new(),
            wanted: "a text that is not empty",
        }),
        text => Ok(text.to_owned()),
    }
}

/// A switch; off where it is absent.
fn boolean(name: &'static str, value: Option<&str>) -> Result<bool, OptionError> {
    match value {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(found) => Err(OptionError::Invalid {
            name,
            found: found.to_owned(),
            wanted: "true or false",
        }),
    }
}

fn position(name: &'static str, value: Option<&str>) -> Result<Lsn, OptionError> {
    let value = required(name, value)?;
    value.parse().map_err(|_| OptionError::Invalid {
        name,
        found: value.to_owned(),
        wanted: "a WAL position such as 0/16B3748",
    })
}

fn number<N: FromStr + Display>(name: &'static str, value: Option<&str>) -> Result<N, OptionError> {
    let value = required(name, value)?;
    let digits_only = value.bytes().all(|b| b.is_ascii_digit());
    value
        .parse()
        .ok()
        .filter(|_| digits_only)
        .ok_or_else(|| OptionError::Invalid {
            name,
            found: value.to_owned(),
            wanted: "a number in range",
        })
}

/// As a list of quoted SQL identifiers: `"default","my ""set"""`.
fn write_list(items: &[String]) -> String {
    let quoted: Vec<String> = items
        .iter()
        .map(|item| format!("\"{}\"", item.replace('"', "\"\"")))
        .collect();
    quoted.join(",")
}

/// Identifiers, quoted or (from a hand-written command) bare and then folded to lower case.
fn list(name: &'static str, value: &str) -> Result<Vec<String>, OptionError> {
    parse_list(value).ok_or_else(|| OptionError::Invalid {
        name,
        found: value.to_owned(),
        wanted: "a list of identifiers, separated by commas",
    })
}

fn parse_list(value: &str) -> Option<Vec<String>> {
    let mut items = Vec::new();
    let mut rest = value.trim_ascii();
    if rest.is_empty() {
        return Some(items);
    }
    loop {
        let (item, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_item(quoted)?,
            None => {
                let (bare, after) = rest.split_at_checked(rest.find(',').unwrap_or(rest.len()))?;
                let bare = bare.trim_ascii_end();
                if bare.contains(|c: char| c == '"' || c.is_ascii_whitespace()) {
                    return None;
                }
                (bare.to_ascii_lowercase(), after)
            }
        };
        if item.is_empty() {
            return None;
        }
        items.push(item);
        rest = after.trim_ascii_start();
        if rest.is_empty() {
            return Some(items);
        }
        rest = rest.strip_prefix(',')?.trim_ascii_start();
    }
}

/// The identifier whose opening quote has been read, and what follows its closing quote.
fn quoted_item(mut rest: &str) -> Option<(String, &str)> {
    let mut item = String::new();
    loop {
        let (part, after) = rest.split_once('"')?;
        item.push_str(part);
        match after.strip_prefix('"') {
            Some(more) => {
                item.push('"');
                rest = more;
            }
            None => return Some((item, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> PluginOptions {
        PluginOptions {
            proto_min: 1,
            proto_max: 1,
            server_version_num: 150_020,
            extension_version: "0.1.0".to_owned(),
            node_id: NodeId::MAX,
            node_name: "n2".to_owned(),
            provider_uid: "0d1f2b1e-9708-4273-bf33-fd8f7ff1d790".to_owned(),
            applied_lsn: Lsn(0x1_0000_002A),
            encoding: "UTF8".to_owned(),
            replication_sets: vec!["default".to_owned(), "My \"set\", really".to_owned()],
            forward_origins: vec![],
            streaming: true,
            two_phase: false,
        }
    }

    fn read(pairs: &[(String, String)]) -> Result<PluginOptions, OptionError> {
        PluginOptions::from_pairs(pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())))
    }

    fn with(name: &str, value: &str) -> Result<PluginOptions, OptionError> {
        let mut pairs = sample().to_pairs();
        match pairs.iter_mut().find(|(known, _)| known == name) {
            Some(pair) => pair.1 = value.to_owned(),
            None => pairs.push((name.to_owned(), value.to_owned())),
        }
        read(&pairs)
    }

    #[test]
    fn options_are_written_as_sql_would() {
        let pairs = sample().to_pairs();
        assert!(pairs.iter().map(|(name, _)| name.as_str()).eq(NAMES));
        assert_eq!(pairs[9].1, r#""default","My ""set"", really""#);
        assert_eq!(pairs[10].1, "");
        assert_eq!(read(&pairs), Ok(sample()));
    }

    #[test]
    fn wrong_options_are_named() {
        let text = |result: Result<PluginOptions, OptionError>| result.unwrap_err().to_string();
        assert_eq!(
            text(with("compression", "on")),
            "unknown pg_ha output plugin option \"compression\""
        );
        assert!(text(with("streaming", "on")).contains("wanted: true or false"));
        assert_eq!(
            text(with("proto_max", "x")),
            "pg_ha output plugin option \"proto_max\" is \"x\", wanted: a number in range"
        );
        assert!(text(with("proto_max", "+1")).contains("proto_max"));
        assert!(text(with("proto_max", "0")).contains("not below proto_min"));
        assert!(text(with("node_id", "1024")).contains("1 to 1023"));
        assert!(text(with("node_name", "a\nb")).contains("control characters"));
        assert!(text(with("encoding", "")).contains("not empty"));
        assert!(text(with("applied_lsn", "16B3748")).contains("WAL position"));
        assert!(text(with("provider_uid", "")).contains("not empty"));
        let mut pairs = sample().to_pairs();
        pairs.push(pairs[0].clone());
        assert_eq!(read(&pairs), Err(OptionError::Repeated { name: "proto_min" }));
        assert_eq!(
            read(&pairs[1..11]),
            Err(OptionError::Missing { name: "proto_min" })
        );
        assert_eq!(
            read(&pairs[..10]),
            Ok(PluginOptions {
                streaming: false,
                ..sample()
            }),
            "the last three may be absent"
        );
    }

    #[test]
    fn lists_may_be_written_by_hand() {
        assert_eq!(
            parse_list(" Default , \"B,c\" ,ddl_sql"),
            Some(["default", "B,c", "ddl_sql"].map(String::from).to_vec())
        );
        assert_eq!(parse_list("  "), Some(vec![]));
        for wrong in [",", "a,", ",a", "a b", "\"a", "\"a\"b", "a\"b\"", "\"\"", "a,,b"] {
            assert_eq!(parse_list(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_highest_common_version_is_taken() {
        let mut subscriber = PluginOptions {
            proto_min: 2,
            proto_max: 4,
            ..sample()
        };
        let mut provider = ProviderVersions {
            proto_min: 1,
            proto_max: 3,
            server_version_num: 150_001,
        };
        assert_eq!(
            negotiate(&subscriber, &provider),
            Ok(Agreed {
                protocol: 3,
                binary: true
            })
        );
        provider = ProviderVersions {
            proto_min: 3,
            proto_max: 9,
            server_version_num: 160_000,
        };
        assert_eq!(
            negotiate(&subscriber, &provider),
            Ok(Agreed {
                protocol: 4,
                binary: false
            })
        );
        subscriber.proto_max = 2;
        assert_eq!(
            negotiate(&subscriber, &provider).unwrap_err().to_string(),
            "no common pg_ha protocol version: the subscriber \"n2\" (pg_ha 0.1.0) speaks 2 to 2, the provider speaks 3 to 9"
        );
        assert_eq!(
            negotiate(&sample(), &ProviderVersions::of_this_build(180_000)).map(|agreed| agreed.protocol),
            Ok(1)
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_identifiers_survive(
            sets in prop::collection::vec(".{1,10}", 0..5),
            origins in prop::collection::vec("[\", a-cA-C\\\\']{1,6}", 0..5),
        ) {
            let options = PluginOptions { replication_sets: sets, forward_origins: origins, ..sample() };
            prop_assert_eq!(read(&options.to_pairs()), Ok(options));
        }

        #[test]
        fn any_pairs_are_judged(
            pairs in prop::collection::vec((prop::sample::select(&NAMES[..]), any::<String>()), 0..12),
        ) {
            let _ = PluginOptions::from_pairs(pairs.iter().map(|(name, value)| (*name, value.as_str())));
        }
    }
}
