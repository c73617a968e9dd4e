//! What a user may set for one subscription (`ha.sub_alter_options`), as its catalog row keeps it in `options`.

use serde_json::{Map, Value};
use thiserror::Error;

/// The keys that `ha.sub_alter_options` takes, for messages.
pub const KEYS: [&str; 7] = [
    "forward_origins",
    "apply_delay",
    "streaming",
    "two_phase",
    "run_as",
    "workers",
    "copy_workers",
];

/// The most appliers or copiers of one subscription.
pub const MAX_WORKERS: u16 = 64;

/// Why options were refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SubscriptionOptionError {
    /// Not a JSON object.
    #[error("the options are not a JSON object")]
    NotAnObject,
    /// A key that does not exist.
    #[error("there is no subscription option \"{0}\"")]
    Unknown(String),
    /// A value that does not fit its key.
    #[error("subscription option \"{key}\" is {found}, wanted: {wanted}")]
    Invalid {
        /// The key.
        key: &'static str,
        /// The value, as JSON.
        found: String,
        /// What it should be.
        wanted: &'static str,
    },
}

/// As whom changes are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunAs {
    /// As the owner of each table: its triggers, defaults and expressions have that role's rights only.
    TableOwner,
    /// As the role that the subscription's workers run as.
    SubscriptionOwner,
}

impl RunAs {
    /// As users write it.
    pub fn as_str(self) -> &'static str {
        match self {
            RunAs::TableOwner => "table_owner",
            RunAs::SubscriptionOwner => "subscription_owner",
        }
    }
}

/// The options that were set; what is not set has its default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SubscriptionOptions {
    streaming: Option<bool>,
    two_phase: Option<bool>,
    run_as: Option<RunAs>,
    workers: Option<u16>,
    copy_workers: Option<u16>,
}

impl SubscriptionOptions {
    /// Whether large transactions are sent while they are in progress. Default: yes.
    pub fn streaming(&self) -> bool {
        self.streaming.unwrap_or(true)
    }

    /// Whether prepared transactions are prepared here too, rather than applied at their commit. Default: no.
    pub fn two_phase(&self) -> bool {
        self.two_phase.unwrap_or(false)
    }

    /// As whom changes are applied. Default: as the owner of each table.
    pub fn run_as(&self) -> RunAs {
        self.run_as.unwrap_or(RunAs::TableOwner)
    }

    /// How many appliers share the work, 1 to [`MAX_WORKERS`]. Default: 1.
    pub fn workers(&self) -> u16 {
        self.workers.unwrap_or(1)
    }

    /// How many processes copy tables at once, 1 to [`MAX_WORKERS`]. None: as many as `ha.sync_workers` says.
    pub fn copy_workers(&self) -> Option<u16> {
        self.copy_workers
    }

    /// Reads what [`Self::to_json`] wrote.
    pub fn from_json(value: &Value) -> Result<SubscriptionOptions, SubscriptionOptionError> {
        SubscriptionOptions::default()
            .alter(value)
            .map(|altered| altered.options)
    }

    /// What was set, as the catalog keeps it.
    pub fn to_json(&self) -> Value {
        let mut object = Map::new();
        let mut put = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                object.insert(key.to_owned(), value);
            }
        };
        put("streaming", self.streaming.map(Value::from));
        put("two_phase", self.two_phase.map(Value::from));
        put("run_as", self.run_as.map(|role| role.as_str().into()));
        put("workers", self.workers.map(Value::from));
        put("copy_workers", self.copy_workers.map(Value::from));
        Value::Object(object)
    }

    /// Changes the options that `change` names; null sets one back to its default.
    pub fn alter(&self, change: &Value) -> Result<Altered, SubscriptionOptionError> {
        let Value::Object(change) = change else {
            return Err(SubscriptionOptionError::NotAnObject);
        };
        let mut altered = Altered {
            options: *self,
            forward_origins: None,
            apply_delay: None,
        };
        for (key, value) in change {
            let options = &mut altered.options;
            match key.as_str() {
                "forward_origins" => altered.forward_origins = Some(origins(value)?),
                "apply_delay" => altered.apply_delay = Some(delay(value)?),
                "streaming" => options.streaming = boolean("streaming", value)?,
                "two_phase" => options.two_phase = boolean("two_phase", value)?,
                "run_as" => options.run_as = role(value)?,
                "workers" => options.workers = count("workers", value)?,
                "copy_workers" => options.copy_workers = count("copy_workers", value)?,
                _ => return Err(SubscriptionOptionError::Unknown(key.clone())),
            }
        }
        Ok(altered)
    }
}

/// What a change of options comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Altered {
    /// All options after it.
    pub options: SubscriptionOptions,
    /// The new list of origins that are forwarded, if it was given.
    pub forward_origins: Option<Vec<String>>,
    /// The new delay, if it was given: an interval as PostgreSQL reads it.
    pub apply_delay: Option<String>,
}

fn invalid(key: &'static str, found: &Value, wanted: &'static str) -> SubscriptionOptionError {
    SubscriptionOptionError::Invalid {
        key,
        found: found.to_string(),
        wanted,
    }
}

fn boolean(key: &'static str, value: &Value) -> Result<Option<bool>, SubscriptionOptionError> {
    match value {
        Value::Null => Ok(None),
        Value::Bool(value) => Ok(Some(*value)),
        _ => Err(invalid(key, value, "true or false")),
    }
}

fn role(value: &Value) -> Result<Option<RunAs>, SubscriptionOptionError> {
    match value.as_str() {
        Some("table_owner") => Ok(Some(RunAs::TableOwner)),
        Some("subscription_owner") => Ok(Some(RunAs::SubscriptionOwner)),
        _ if value.is_null() => Ok(None),
        _ => Err(invalid(
            "run_as",
            value,
            "\"table_owner\" or \"subscription_owner\"",
        )),
    }
}

fn count(key: &'static str, value: &Value) -> Result<Option<u16>, SubscriptionOptionError> {
    if value.is_null() {
        return Ok(None);
    }
    value
        .as_u64()
        .and_then(|count| u16::try_from(count).ok())
        .filter(|count| (1..=MAX_WORKERS).contains(count))
        .map(Some)
        .ok_or_else(|| invalid(key, value, "a number from 1 to 64"))
}

fn delay(value: &Value) -> Result<String, SubscriptionOptionError> {
    match value {
        Value::Null => Ok("0".to_owned()),
        Value::String(text) if !text.trim().is_empty() => Ok(text.clone()),
        _ => Err(invalid("apply_delay", value, "an interval such as \"5 minutes\"")),
    }
}

fn origins(value: &Value) -> Result<Vec<String>, SubscriptionOptionError> {
    const WANTED: &str = "an array of node names, each once";
    let list = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Array(list) => list,
        _ => return Err(invalid("forward_origins", value, WANTED)),
    };
    let mut names: Vec<String> = Vec::with_capacity(list.len());
    for item in list {
        match item.as_str() {
            Some(name) if !name.is_empty() && !names.iter().any(|known| known == name) => {
                names.push(name.to_owned());
            }
            _ => return Err(invalid("forward_origins", value, WANTED)),
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn alter(change: Value) -> Result<Altered, String> {
        SubscriptionOptions::default()
            .alter(&change)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_set_has_its_default() {
        let options = SubscriptionOptions::from_json(&json!({})).unwrap();
        assert!(options.streaming());
        assert!(!options.two_phase());
        assert_eq!(options.run_as(), RunAs::TableOwner);
        assert_eq!(options.workers(), 1);
        assert_eq!(options.copy_workers(), None);
        assert_eq!(options.to_json(), json!({}));
    }

    #[test]
    fn null_sets_back_and_others_stay() {
        let first = alter(json!({"streaming": false, "workers": 4})).unwrap().options;
        let second = first.alter(&json!({"workers": null})).unwrap().options;
        assert_eq!(second.to_json(), json!({"streaming": false}));
    }

    #[test]
    fn columns_of_their_own_are_handed_out() {
        let altered = alter(json!({"forward_origins": ["n1", "n3"], "apply_delay": "5 min"})).unwrap();
        assert_eq!(altered.options, SubscriptionOptions::default());
        assert_eq!(altered.forward_origins, Some(vec!["n1".into(), "n3".into()]));
        assert_eq!(altered.apply_delay.as_deref(), Some("5 min"));
        let reset = alter(json!({"forward_origins": null, "apply_delay": null})).unwrap();
        assert_eq!(reset.forward_origins, Some(vec![]));
        assert_eq!(reset.apply_delay.as_deref(), Some("0"));
    }

    #[test]
    fn wrong_options_are_named() {
        assert_eq!(alter(json!([])).unwrap_err(), "the options are not a JSON object");
        assert_eq!(
            alter(json!({"stream": true})).unwrap_err(),
            "there is no subscription option \"stream\""
        );
        for (change, wanted) in [
            (json!({"streaming": "on"}), "true or false"),
            (json!({"run_as": "me"}), "table_owner"),
            (json!({"workers": 0}), "from 1 to 64"),
            (json!({"workers": 65}), "from 1 to 64"),
            (json!({"copy_workers": 1.5}), "from 1 to 64"),
            (json!({"apply_delay": 5}), "an interval"),
            (json!({"apply_delay": ""}), "an interval"),
            (json!({"forward_origins": "n1"}), "an array"),
            (json!({"forward_origins": ["n1", "n1"]}), "each once"),
            (json!({"forward_origins": [null]}), "an array"),
        ] {
            let error = alter(change.clone()).unwrap_err();
            assert!(error.contains(wanted), "{change}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_kept_is_read_again(
            streaming: Option<bool>,
            two_phase: Option<bool>,
            owner: Option<bool>,
            workers in proptest::option::of(1..=MAX_WORKERS),
            copy_workers in proptest::option::of(1..=MAX_WORKERS),
        ) {
            let options = SubscriptionOptions {
                streaming,
                two_phase,
                run_as: owner.map(|owner| if owner { RunAs::TableOwner } else { RunAs::SubscriptionOwner }),
                workers,
                copy_workers,
            };
            prop_assert_eq!(SubscriptionOptions::from_json(&options.to_json()), Ok(options));
        }
    }
}
