use super::*;
use proptest::prelude::*;

fn pairs(text: &str) -> Vec<(String, String)> {
    Conninfo::parse(text).unwrap().settings
}

#[track_caller]
fn reads(text: &str, wanted: &[(&str, &str)]) {
    let found = pairs(text);
    let found: Vec<_> = found.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(found, wanted, "{text}");
}

#[track_caller]
fn fails(text: &str, position: usize) {
    match Conninfo::parse(text) {
        Err(ConninfoError::Expected { position: found, .. }) => assert_eq!(found, position, "{text}"),
        other => panic!("{text}: {other:?}"),
    }
    assert_eq!(mask(text), HIDDEN);
}

#[test]
fn keyword_value_syntax() {
    reads("", &[]);
    reads("  ", &[]);
    reads("host=a port = 5432", &[("host", "a"), ("port", "5432")]);
    reads(
        r"password='it\'s \\ here' user=u",
        &[("password", r"it's \ here"), ("user", "u")],
    );
    reads(r"user=a\ b\'c dbname=''", &[("user", "a b'c"), ("dbname", "")]);
    reads("a='x'b=y", &[("a", "x"), ("b", "y")]);
    reads("a=x=y", &[("a", "x=y")]);
    reads("password= host=x", &[("password", "host=x")]);
    reads("host=a user=u host=b", &[("host", "b"), ("user", "u")]);
    reads(
        "host=a,b hostaddr=1.2.3.4,::1",
        &[("host", "a,b"), ("hostaddr", "1.2.3.4,::1")],
    );
    reads(r"a=x\", &[("a", "x")]);
}

#[test]
fn keyword_value_errors_name_the_position() {
    fails("host", 4);
    fails("password=se cret", 16);
    fails("host 'x'", 5);
    fails("password='secret", 16);
    fails("=x", 0);
    fails("pass-word=x", 0);
    fails("host=a\0b", 6);
}

#[test]
fn uri_syntax() {
    reads("postgresql://", &[]);
    reads("postgres://localhost", &[("host", "localhost")]);
    reads(
        "postgresql://localhost:5433/mydb",
        &[("host", "localhost"), ("port", "5433"), ("dbname", "mydb")],
    );
    reads(
        "postgresql://other@localhost/otherdb?connect_timeout=10&application_name=my%20app",
        &[
            ("user", "other"),
            ("host", "localhost"),
            ("dbname", "otherdb"),
            ("connect_timeout", "10"),
            ("application_name", "my app"),
        ],
    );
    reads(
        "postgresql://u:p%40ss@host1:123,host2:456/db?target_session_attrs=any",
        &[
            ("user", "u"),
            ("password", "p@ss"),
            ("host", "host1,host2"),
            ("port", "123,456"),
            ("dbname", "db"),
            ("target_session_attrs", "any"),
        ],
    );
    reads("postgresql://a,b/", &[("host", "a,b"), ("port", ",")]);
    reads(
        "postgresql://[2001:db8::1]:99/db",
        &[("host", "2001:db8::1"), ("port", "99"), ("dbname", "db")],
    );
    reads(
        "postgresql://%2Fvar%2Frun/db",
        &[("host", "/var/run"), ("dbname", "db")],
    );
    reads(
        "postgresql:///db?host=/tmp&ssl=true",
        &[("dbname", "db"), ("host", "/tmp"), ("sslmode", "require")],
    );
    reads("postgresql://u:@h", &[("user", "u"), ("host", "h")]);
    reads("postgresql://:p@h", &[("password", "p"), ("host", "h")]);
    reads("postgresql://?user=u", &[("user", "u")]);
}

#[test]
fn uri_errors_name_the_position() {
    fails("postgresql://[::1", 17);
    fails("postgresql://[]", 14);
    fails("postgresql://[::1]x", 18);
    fails("postgresql://h?key", 18);
    fails("postgresql://h?password=a=b", 25);
    fails("postgresql://h?a%20b=c", 15);
    fails("postgresql://u:%zz@h", 15);
    fails("postgresql://u:%00@h", 15);
    fails("postgresql://u:%4", 15);
    fails("postgresql://u:%ff%fe@h", 15);
}

#[test]
fn masks_hide_secrets_and_nothing_else() {
    for (text, shown) in [
        ("host=a user=u", "host=a user=u"),
        ("host=a password=secret user=u", "host=a password=******** user=u"),
        (r"password = 'se\'c ret'  host=a", "password = ********  host=a"),
        ("password='secret'host=a", "password=******** host=a"),
        (
            "sslpassword=secret passfile=/f",
            "sslpassword=******** passfile=/f",
        ),
        ("PASSWORD=secret", "PASSWORD=********"),
        (
            "password=secret password=secret",
            "password=******** password=********",
        ),
        (
            "oauth_client_secret=secret scram_client_key=secret",
            "oauth_client_secret=******** scram_client_key=********",
        ),
        ("dbname='host=a password=secret'", "dbname=********"),
        ("dbname=postgres://u:secret@h/", "dbname=********"),
        (
            "postgresql://u:secret@h:1/db?a=b",
            "postgresql://u:********@h:1/db?a=b",
        ),
        (
            "postgres://u@h/db?password=secret&sslpassword=secret&a=b",
            "postgres://u@h/db?password=********&sslpassword=********&a=b",
        ),
        (
            "postgres://u@h/db?pass%77ord=secret",
            "postgres://u@h/db?pass%77ord=********",
        ),
        // A password with an unescaped @ or / reads as something else: show nothing.
        ("postgres://u:sec@ret@h/db", HIDDEN),
        ("postgres://u:sec/secret@h/db", HIDDEN),
        ("postgres://u:sec@secret?x=secret@h/db", HIDDEN),
        ("password=a secret", HIDDEN),
        ("password='secret", HIDDEN),
    ] {
        assert_eq!(mask(text), shown, "{text}");
        assert!(!mask(text).contains("=secret"), "{text}");
    }
}

#[test]
fn settings_can_be_completed() {
    let mut conninfo: Conninfo = "postgres://u:it's@h/db".parse().unwrap();
    conninfo.set_default("user", "other").unwrap();
    conninfo.set_default("connect_timeout", "5").unwrap();
    conninfo.set("dbname", "").unwrap();
    assert_eq!(conninfo.get("user"), Some("u"));
    assert_eq!(conninfo.get("port"), None);
    assert_eq!(
        conninfo.to_conninfo(),
        r"user=u password='it\'s' host=h dbname='' connect_timeout=5"
    );
    assert_eq!(
        conninfo.to_masked(),
        "user=u password=******** host=h dbname='' connect_timeout=5"
    );
    assert_eq!(
        format!("{conninfo:?}"),
        "Conninfo(user=u password=******** host=h dbname='' connect_timeout=5)"
    );
    assert_eq!(conninfo.remove("password"), Some("it's".to_owned()));
    assert_eq!(conninfo.set("a b", "c"), Err(ConninfoError::Keyword));
    assert_eq!(conninfo.set("a", "c\0"), Err(ConninfoError::ZeroByte));
}

fn settings() -> impl Strategy<Value = Vec<(String, String)>> {
    let value = prop_oneof![r"[ -~]{0,12}", r"[\PC&&[^\x00]]{0,8}", r"[ '\\=\t\n]{0,6}"];
    prop::collection::vec(("[a-z_][a-z0-9_]{0,10}", value), 0..6)
}

fn encoded(value: &str) -> String {
    value.bytes().map(|b| format!("%{b:02x}")).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_reads_back(settings in settings()) {
        let mut conninfo = Conninfo::default();
        for (keyword, value) in &settings {
            conninfo.set(keyword, value).unwrap();
        }
        prop_assert_eq!(Conninfo::parse(&conninfo.to_conninfo()), Ok(conninfo));
    }

    #[test]
    fn uri_parameters_read_back(settings in settings()) {
        let query: Vec<String> = settings.iter().map(|(k, v)| format!("{k}={}", encoded(v))).collect();
        let mut wanted = Conninfo::default();
        for (keyword, value) in &settings {
            prop_assume!(keyword != "ssl");
            wanted.set(keyword, value).unwrap();
        }
        prop_assert_eq!(Conninfo::parse(&format!("postgresql://?{}", query.join("&"))), Ok(wanted));
    }

    #[test]
    fn a_password_is_never_shown(
        password in "S3CR[a-zA-Z0-9 @:/?&='\\\\%]{1,12}",
        template in prop::sample::select(vec![
            "host=a password=# user=u",
            "password='#' user=u",
            "user=u password=#",
            "postgresql://u:#@h:5432/db?application_name=x",
            "postgresql://u:#@h,h2/db",
            "postgresql://u@h/db?password=#",
            "postgres://h/?sslpassword=#&user=x",
        ]),
    ) {
        let text = template.replace('#', &password);
        // Blanks, quotes, & and the like end a value early: only what still belongs to the value must be hidden,
        // and that begins with the marker.
        prop_assert!(!mask(&text).contains("S3CR"), "{} shown as {}", text, mask(&text));
        if let Err(error) = Conninfo::parse(&text) {
            prop_assert!(!error.to_string().contains("S3CR"));
        }
    }

    #[test]
    fn any_text_is_judged(text in any::<String>(), uri in any::<bool>()) {
        let text = if uri { format!("postgresql://{text}") } else { text };
        let _ = Conninfo::parse(&text);
        let _ = mask(&text);
    }
}
