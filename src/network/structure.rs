//! The definitions of a provider's database, as pg_dump beside this server writes them.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pg_ha_model::conninfo::{self, Conninfo};

use super::peer::{PeerError, parse_dsn};
use crate::durable;
use crate::postgres::{latch, server};

/// Why there is no dump.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DumpError {
    #[error(transparent)]
    Dsn(#[from] PeerError),
    #[error(transparent)]
    Directory(#[from] durable::Error),
    #[error("could not run \"{}\": {source}", program.display())]
    Program { program: PathBuf, source: io::Error },
    #[error("pg_dump failed: {0}")]
    Failed(String),
    #[error("could not read what pg_dump wrote: {0}")]
    Output(io::Error),
}

/// A running pg_dump, ended with this value.
struct Running {
    child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The statements that make the provider's schemas, tables, types, functions and so on: of all but this extension,
/// with those owners, and the privileges of those roles, that are among `roles` (quoted where needed): others do not
/// exist here.
pub(crate) fn dump(dsn: &str, roles: &[String]) -> Result<String, DumpError> {
    let mut parameters = parse_dsn(dsn)?;
    let program = server::program("pg_dump");
    let mut command = Command::new(&program);
    // Everybody on the machine sees the arguments of a process, but only its user the environment.
    if let Some(password) = parameters.remove("password") {
        command.env("PGPASSWORD", password);
    }
    let directory = durable::ensure_directory()?;
    let (mut output, mut complaints) = (
        nameless(&directory.join(format!("structure.{}", server::process_id())))?,
        nameless(&directory.join(format!("structure_errors.{}", server::process_id())))?,
    );
    let to = |file: &File| file.try_clone().map_err(DumpError::Output);
    let child = command
        .args([
            "--schema-only",
            "--no-publications",
            "--no-subscriptions",
            "--exclude-schema=ha",
            "--encoding",
            &server::encoding(),
            "--dbname",
            &parameters.to_conninfo(),
        ])
        .stdin(Stdio::null())
        .stdout(to(&output)?)
        .stderr(to(&complaints)?)
        .spawn()
        .map_err(|source| DumpError::Program { program, source })?;
    let mut running = Running { child };
    let status = loop {
        if let Some(status) = running.child.try_wait().map_err(DumpError::Output)? {
            break status;
        }
        latch::pause(Duration::from_millis(20));
    };
    if !status.success() {
        let said = whole(&mut complaints)?;
        return Err(DumpError::Failed(without_secrets(&parameters, dsn, said.trim())));
    }
    Ok(within_transaction(&whole(&mut output)?, roles))
}

/// A file that loses its name at once, so that it goes with those who have it open, however they end.
fn nameless(path: &Path) -> Result<File, DumpError> {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(DumpError::Output)?;
    fs::remove_file(path).map_err(DumpError::Output)?;
    Ok(file)
}

fn whole(file: &mut File) -> Result<String, DumpError> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).map_err(DumpError::Output)?;
    file.read_to_string(&mut text).map_err(DumpError::Output)?;
    Ok(text)
}

fn without_secrets(parameters: &Conninfo, dsn: &str, text: &str) -> String {
    let all = Conninfo::parse(dsn).ok();
    all.as_ref()
        .unwrap_or(parameters)
        .iter()
        .filter(|(keyword, value)| conninfo::is_secret(keyword) && value.len() > 2)
        .fold(text.to_owned(), |text, (_, secret)| {
            text.replace(secret, conninfo::MASK)
        })
}

/// The settings that pg_dump changes for its script.
const SETTINGS: [&str; 12] = [
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "transaction_timeout",
    "client_encoding",
    "standard_conforming_strings",
    "check_function_bodies",
    "xmloption",
    "client_min_messages",
    "row_security",
    "default_tablespace",
    "default_table_access_method",
];

/// Recent minor releases keep this beside the options of columns, for their own use. A pg_dump that does not know it
/// writes it down, and a server that does not know it refuses it.
const INTERNAL_OPTION: &str = "pg_attver=";

/// The line without that option, if it has it; no line at all if it has nothing else.
fn without_internal_option(line: &str) -> Option<Option<String>> {
    if !line.starts_with("ALTER TABLE ") && !line.starts_with("ALTER FOREIGN TABLE ") {
        return None;
    }
    let (head, rest) = line.rsplit_once(" SET (")?;
    let options = rest.strip_suffix(");")?;
    let internal = |option: &&str| option.starts_with(INTERNAL_OPTION);
    if !options.split(", ").any(|option| internal(&option)) {
        return None;
    }
    let kept: Vec<&str> = options.split(", ").filter(|option| !internal(option)).collect();
    Some((!kept.is_empty()).then(|| format!("{head} SET ({});", kept.join(", "))))
}

/// Whom the statement makes the owner of something.
fn owner(line: &str) -> Option<&str> {
    let (_, owner) = line.strip_prefix("ALTER ")?.rsplit_once(" OWNER TO ")?;
    owner.strip_suffix(';')
}

/// Whether the statement is about privileges, and then whether all roles that it names are known.
fn privileges(line: &str, known: impl Fn(&str) -> bool) -> Option<bool> {
    if line.ends_with(" SESSION AUTHORIZATION;") || line.starts_with("SET SESSION AUTHORIZATION ") {
        // Who gave a privilege on is not kept: all come from the owner.
        return Some(false);
    }
    let (head, statement) = match line.strip_prefix("ALTER DEFAULT PRIVILEGES FOR ROLE ") {
        None => (None, line),
        Some(rest) => {
            let start = [" GRANT ", " REVOKE "]
                .iter()
                .filter_map(|word| rest.find(word))
                .min()?;
            let (head, statement) = rest.split_at(start);
            let role = head.split_once(" IN SCHEMA ").map_or(head, |(role, _)| role);
            (Some(role), statement.trim_start())
        }
    };
    let separator = if statement.starts_with("GRANT ") {
        " TO "
    } else if statement.starts_with("REVOKE ") {
        " FROM "
    } else {
        return None;
    };
    let (_, grantee) = statement.strip_suffix(';')?.rsplit_once(separator)?;
    let grantee = grantee.strip_suffix(" WITH GRANT OPTION").unwrap_or(grantee);
    Some((grantee == "PUBLIC" || known(grantee)) && head.is_none_or(known))
}

/// The script as part of a transaction: without what only psql understands, without the extension, which is here, and
/// with settings that end with the transaction. Those of limits in time are left as they are.
fn within_transaction(script: &str, roles: &[String]) -> String {
    let line = |line: &str| -> Option<String> {
        if let Some(owner) = owner(line) {
            // Those may belong to superusers alone, which a role of that name need not be here.
            let for_superusers =
                line.starts_with("ALTER EVENT TRIGGER ") || line.starts_with("ALTER FOREIGN DATA WRAPPER ");
            let kept = !for_superusers && roles.iter().any(|role| role == owner);
            return kept.then(|| line.to_owned());
        }
        if let Some(kept) = privileges(line, |role| roles.iter().any(|known| known == role)) {
            return kept.then(|| line.to_owned());
        }
        if line.starts_with("\\restrict ") || line.starts_with("\\unrestrict ") {
            return None;
        }
        if line.starts_with("CREATE EXTENSION IF NOT EXISTS pg_ha ")
            || line.starts_with("COMMENT ON EXTENSION pg_ha ")
        {
            return None;
        }
        if line == "SELECT pg_catalog.set_config('search_path', '', false);" {
            return Some("SELECT pg_catalog.set_config('search_path', '', true);".to_owned());
        }
        if let Some(line) = without_internal_option(line) {
            return line;
        }
        let setting = line.strip_prefix("SET ").and_then(|rest| {
            SETTINGS
                .iter()
                .find(|name| rest.starts_with(&format!("{name} = ")))
        });
        match setting {
            Some(name) if name.ends_with("_timeout") || *name == "client_encoding" => None,
            Some(_) => Some(line.replacen("SET ", "SET LOCAL ", 1)),
            None => Some(line.to_owned()),
        }
    };
    let mut place = Place::Statement;
    let lines = script.lines().filter_map(|text| {
        let inside = place != Place::Statement;
        place = place.after(text);
        // Part of a function, a comment or another string: somebody's own words.
        if inside { Some(text.to_owned()) } else { line(text) }
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Where in a script a line begins. As pg_dump writes them, with `standard_conforming_strings` on.
#[derive(Clone, PartialEq, Eq)]
enum Place {
    Statement,
    /// In a string; with escapes by backslash.
    String(bool),
    Identifier,
    /// In a string that ends with this.
    Dollar(String),
    /// In so many comments.
    Comment(usize),
}

impl Place {
    /// Where the next line begins.
    fn after(&self, line: &str) -> Place {
        let mut place = self.clone();
        let mut rest = line;
        // The last character, for what an E before a quote means.
        let mut before = ' ';
        while let Some(first) = rest.chars().next() {
            let (taken, next) = match &place {
                Place::Statement => Place::opened_by(rest, before),
                Place::String(true) if first == '\\' => (2, None),
                Place::String(_) if first == '\'' => (1, Some(Place::Statement)),
                Place::Identifier if first == '"' => (1, Some(Place::Statement)),
                Place::Dollar(end) if rest.starts_with(end.as_str()) => (end.len(), Some(Place::Statement)),
                Place::Comment(depth) if rest.starts_with("*/") => (
                    2,
                    Some(match depth {
                        0 | 1 => Place::Statement,
                        depth => Place::Comment(depth - 1),
                    }),
                ),
                Place::Comment(depth) if rest.starts_with("/*") => (2, Some(Place::Comment(depth + 1))),
                _ => (1, None),
            };
            place = next.unwrap_or(place);
            let mut characters = rest.char_indices().skip_while(|(at, _)| *at < taken);
            before = first;
            rest = characters.next().map_or("", |(at, _)| &rest[at..]);
        }
        place
    }

    /// What begins here, in a statement: how many bytes it takes, and where they lead.
    fn opened_by(rest: &str, before: char) -> (usize, Option<Place>) {
        let word = |character: char| character.is_alphanumeric() || matches!(character, '_' | '$');
        if rest.starts_with("--") {
            return (rest.len(), None);
        }
        if rest.starts_with("/*") {
            return (2, Some(Place::Comment(1)));
        }
        if rest.starts_with('"') {
            return (1, Some(Place::Identifier));
        }
        if rest.starts_with('\'') {
            return (1, Some(Place::String(false)));
        }
        if !word(before) && (rest.starts_with("E'") || rest.starts_with("e'")) {
            return (2, Some(Place::String(true)));
        }
        if !word(before)
            && let Some((tag, _)) = rest.strip_prefix('$').and_then(|rest| rest.split_once('$'))
            && tag.chars().all(|character| character != '$' && word(character))
        {
            return (tag.len() + 2, Some(Place::Dollar(format!("${tag}$"))));
        }
        (1, None)
    }
}

#[cfg(test)]
mod tests {
    use super::within_transaction;

    #[test]
    fn what_only_the_providers_release_knows_is_left_out() {
        let script = "ALTER TABLE ONLY public.a ALTER COLUMN b SET (pg_attver=23);\n\
                      ALTER TABLE ONLY public.a ALTER COLUMN c SET (n_distinct=5, pg_attver=23);\n\
                      ALTER TABLE ONLY public.a ALTER COLUMN d SET (n_distinct=5);";
        assert_eq!(
            within_transaction(script, &[]),
            "ALTER TABLE ONLY public.a ALTER COLUMN c SET (n_distinct=5);\n\
             ALTER TABLE ONLY public.a ALTER COLUMN d SET (n_distinct=5);"
        );
    }

    #[test]
    fn owners_that_exist_stay_owners() {
        let script = "ALTER TABLE public.a OWNER TO \"Bob\";\nALTER FUNCTION f(integer) OWNER TO carol;\nALTER SCHEMA s OWNER TO bob;";
        let roles = ["\"Bob\"".to_owned(), "bob".to_owned()];
        assert_eq!(
            within_transaction(script, &roles),
            "ALTER TABLE public.a OWNER TO \"Bob\";\nALTER SCHEMA s OWNER TO bob;"
        );
    }

    #[test]
    fn privileges_of_roles_that_exist_stay() {
        let script = "REVOKE ALL ON FUNCTION public.f() FROM PUBLIC;\n\
                      GRANT ALL ON FUNCTION public.f() TO bob WITH GRANT OPTION;\n\
                      GRANT SELECT(a) ON TABLE public.t TO carol;\n\
                      SET SESSION AUTHORIZATION bob;\n\
                      GRANT ALL ON FUNCTION public.f() TO \"Bob\";\n\
                      RESET SESSION AUTHORIZATION;\n\
                      ALTER DEFAULT PRIVILEGES FOR ROLE bob IN SCHEMA s GRANT SELECT ON TABLES TO PUBLIC;\n\
                      ALTER DEFAULT PRIVILEGES FOR ROLE carol REVOKE ALL ON FUNCTIONS FROM PUBLIC;";
        let roles = ["\"Bob\"".to_owned(), "bob".to_owned()];
        assert_eq!(
            within_transaction(script, &roles),
            "REVOKE ALL ON FUNCTION public.f() FROM PUBLIC;\n\
             GRANT ALL ON FUNCTION public.f() TO bob WITH GRANT OPTION;\n\
             GRANT ALL ON FUNCTION public.f() TO \"Bob\";\n\
             ALTER DEFAULT PRIVILEGES FOR ROLE bob IN SCHEMA s GRANT SELECT ON TABLES TO PUBLIC;"
        );
    }

    #[test]
    fn what_somebody_wrote_stays_as_it_is() {
        let script = "CREATE FUNCTION f() AS $_$
\\restrict x
SET lock_timeout = 0;
SET row_security = off;
$$
SELECT pg_catalog.set_config('search_path', '', false);
$_$;
COMMENT ON FUNCTION f() IS 'It''s
SET row_security = off;
';
CREATE VIEW \"a'
SET row_security = off;
\" AS SELECT E'\\'
SET row_security = off;
', '\\' AS c$$, $1;
/* a /* b */
SET row_security = off;
*/ -- it's
";
        assert_eq!(
            within_transaction(
                &format!("{script}SET lock_timeout = 0;\nSET row_security = off;"),
                &[]
            ),
            format!("{script}SET LOCAL row_security = off;")
        );
    }

    #[test]
    fn a_script_becomes_part_of_a_transaction() {
        let script = "\\restrict abc\nSET statement_timeout = 0;\nSET row_security = off;\n\
                      SELECT pg_catalog.set_config('search_path', '', false);\n\
                      CREATE EXTENSION IF NOT EXISTS pg_ha WITH SCHEMA public;\n\
                      CREATE FUNCTION f() AS $$\nUPDATE t\nSET x = 1;\n$$;\n\\unrestrict abc";
        assert_eq!(
            within_transaction(script, &[]),
            "SET LOCAL row_security = off;\nSELECT pg_catalog.set_config('search_path', '', true);\n\
             CREATE FUNCTION f() AS $$\nUPDATE t\nSET x = 1;\n$$;"
        );
    }
}
