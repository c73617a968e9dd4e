//! Protocol version 1 as bytes on disk: what is encoded today must be what was encoded when the version was released,
//! and what was encoded then must be understood today.
//!
//! `PG_HA_GOLDEN=write` writes the files anew, for samples that are added; the diff shows whether old ones changed.

mod samples;

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use pg_ha_replication::codec::{Decoder, Encoder};

fn path(name: &str, extension: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/v1")
        .join(format!("{name}.{extension}"))
}

#[test]
fn version_1_is_frozen() {
    let write = std::env::var("PG_HA_GOLDEN").is_ok_and(|value| value == "write");
    for (name, frame) in samples::all().unwrap() {
        let mut shown = String::new();
        let mut again = Encoder::new();
        let mut decoder = Decoder::new(&frame);
        while let Some(message) = decoder.next().unwrap() {
            writeln!(shown, "{message:?}").unwrap();
            again.message(&message).unwrap();
        }
        assert_eq!(again.as_bytes(), frame, "{name}: decoded and encoded again");
        if write {
            fs::write(path(name, "bin"), &frame).unwrap();
            fs::write(path(name, "txt"), &shown).unwrap();
        }
        assert_eq!(fs::read(path(name, "bin")).unwrap(), frame, "{name}: encoded");
        assert_eq!(
            fs::read_to_string(path(name, "txt")).unwrap(),
            shown,
            "{name}: decoded"
        );
    }
}

#[test]
fn every_golden_file_has_its_sample() {
    let mut files: Vec<String> = fs::read_dir(path("x", "bin").parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".bin"))
        .collect();
    files.sort();
    let mut names: Vec<String> = samples::all()
        .unwrap()
        .iter()
        .map(|(name, _)| format!("{name}.bin"))
        .collect();
    names.sort();
    assert_eq!(files, names);
}
