//! A schema with every type that replicates, rows for it, and what is done to them: for scenarios that look at values.
//!
//! For each type there are up to three tables: `p_…` finds rows by a number, `f_…` by the whole row, `k_…` by the value.

use std::fmt::Write as _;

use anyhow::{Result, ensure};

use crate::node::Node;
use crate::sql;

/// One type and values of it, as literals.
struct Sample {
    /// Part of the tables' names.
    name: &'static str,
    sql_type: &'static str,
    /// Values of it can be a primary key.
    key: bool,
    values: &'static [&'static str],
}

const fn sample(
    name: &'static str,
    sql_type: &'static str,
    key: bool,
    values: &'static [&'static str],
) -> Sample {
    Sample {
        name,
        sql_type,
        key,
        values,
    }
}

const KEY: bool = true;
const NO_KEY: bool = false;

const SAMPLES: &[Sample] = &[
    sample("bool", "bool", KEY, &["t", "f"]),
    sample("int2", "int2", KEY, &["-32768", "0", "32767"]),
    sample("int4", "int4", KEY, &["-2147483648", "0", "2147483647"]),
    sample(
        "int8",
        "int8",
        KEY,
        &["-9223372036854775808", "9223372036854775807"],
    ),
    sample("oid", "oid", KEY, &["0", "4294967295"]),
    sample(
        "float4",
        "float4",
        KEY,
        &["-0", "NaN", "-Infinity", "1.4e-45", "3.4028235e38", "0.1"],
    ),
    sample(
        "float8",
        "float8",
        KEY,
        &[
            "-0",
            "NaN",
            "Infinity",
            "4.9406564584124654e-324",
            "1.7976931348623157e308",
            "0.1",
            "0.30000000000000004",
        ],
    ),
    sample(
        "numeric",
        "numeric",
        KEY,
        &[
            "NaN",
            "Infinity",
            "-Infinity",
            "0",
            "1.5",
            "-1e-300",
            "12345678901234567890123456789.000000000000000000000000001",
        ],
    ),
    sample(
        "numeric_scale",
        "numeric",
        NO_KEY,
        &["1.0", "1.00", "1.000", "0.0000"],
    ),
    sample(
        "numeric_limited",
        "numeric(12,4)",
        KEY,
        &["99999999.9999", "0.0001", "NaN"],
    ),
    sample(
        "money",
        "money",
        KEY,
        &["-92233720368547758.08", "0.01", "1234.5"],
    ),
    sample(
        "text",
        "text",
        KEY,
        &[
            "",
            "plain",
            "tab\there",
            "NULL",
            "\\\\N",
            "quote \" and ' and \\\\",
            "äöü€𝄞",
            "two\nlines",
        ],
    ),
    sample("varchar", "varchar(8)", KEY, &["", "eight ch"]),
    sample("bpchar", "char(6)", KEY, &["", "a", "  b", "sixsix"]),
    sample("one_char", "\"char\"", KEY, &["a", ""]),
    sample(
        "name",
        "name",
        KEY,
        &[
            "",
            "a name",
            "sixty-three bytes are the most that a name can hold, this many..",
        ],
    ),
    sample("bytea", "bytea", KEY, &["", "\\\\x00ff005c27", "\\\\xdeadbeef"]),
    sample(
        "date",
        "date",
        KEY,
        &[
            "infinity",
            "-infinity",
            "4713-01-01 BC",
            "5874897-12-31",
            "2020-02-03",
        ],
    ),
    sample("time", "time", KEY, &["00:00:00", "24:00:00", "23:59:59.999999"]),
    sample("time_0", "time(0)", KEY, &["12:34:56"]),
    sample(
        "timetz",
        "timetz",
        KEY,
        &["00:00:00+15:59", "24:00:00-15:59", "01:02:03.000004+05:30"],
    ),
    sample(
        "timestamp",
        "timestamp",
        KEY,
        &[
            "infinity",
            "-infinity",
            "4713-01-01 00:00:00 BC",
            "294276-12-31 23:59:59.999999",
            "2020-02-03 04:05:06.000007",
            "0044-03-15 12:00:00 BC",
        ],
    ),
    sample(
        "timestamptz",
        "timestamptz",
        KEY,
        &[
            "infinity",
            "-infinity",
            "4713-01-02 00:00:00+00 BC",
            "294276-12-31 23:59:59.999999+00",
            "2020-02-03 04:05:06.000007+00",
            "1850-01-01 00:00:00+00",
        ],
    ),
    sample("timestamp_3", "timestamp(3)", KEY, &["2020-02-03 04:05:06.007"]),
    sample(
        "interval",
        "interval",
        KEY,
        &[
            "0",
            "178000000 years",
            "-178000000 years",
            "-1 year -2 mons +3 days -04:05:06.000007",
            "1 mon -1 day",
            "00:00:00.000001",
        ],
    ),
    sample("interval_limited", "interval(0)", KEY, &["1 day 02:03:04"]),
    sample("bit", "bit(5)", KEY, &["00000", "10101"]),
    sample("varbit", "varbit", KEY, &["", "1", "101010101010101010101"]),
    sample(
        "uuid",
        "uuid",
        KEY,
        &[
            "00000000-0000-0000-0000-000000000000",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        ],
    ),
    sample(
        "json",
        "json",
        NO_KEY,
        &["null", "{\"b\": 1,  \"a\": [1e400, \"\\\\u00e4\"], \"b\": 2}"],
    ),
    sample(
        "jsonb",
        "jsonb",
        KEY,
        &["null", "{\"b\": 1.50, \"a\": [1e30, \"ä\", {}]}", "[]", "-0.0"],
    ),
    sample(
        "jsonpath",
        "jsonpath",
        NO_KEY,
        &["$", "strict $.a[*] ? (@.b == 1 && @.c starts with \"x\").d"],
    ),
    sample(
        "xml",
        "xml",
        NO_KEY,
        &[
            "",
            "text",
            "<a b=\"c\">d<!-- e --></a><f/>",
            "<?xml version=\"1.0\" standalone=\"yes\"?><a/>",
        ],
    ),
    sample(
        "tsvector",
        "tsvector",
        KEY,
        &["", "'a':1A,2B 'it''s':3 'space d'"],
    ),
    sample(
        "tsquery",
        "tsquery",
        KEY,
        &["", "'a':AB & !( 'b' | 'c':* ) <3> 'd'"],
    ),
    sample(
        "point",
        "point",
        NO_KEY,
        &["(-0,0)", "(NaN,Infinity)", "(0.1,0.30000000000000004)"],
    ),
    sample("line", "line", NO_KEY, &["{1,-1,0.1}"]),
    sample("lseg", "lseg", NO_KEY, &["[(0.1,0.2),(3,4)]"]),
    sample("box", "box", NO_KEY, &["(3,4),(0.1,0.2)"]),
    sample(
        "path",
        "path",
        NO_KEY,
        &["[(0,0),(1,1),(2,0)]", "((0,0),(1,1),(2,0))"],
    ),
    sample("polygon", "polygon", NO_KEY, &["((0,0),(1,1),(2,0.1))"]),
    sample("circle", "circle", NO_KEY, &["<(0.1,0.2),3>"]),
    sample(
        "inet",
        "inet",
        KEY,
        &["0.0.0.0/0", "10.1.2.3/8", "::1", "fe80::1/10"],
    ),
    sample("cidr", "cidr", KEY, &["10.0.0.0/8", "2001:db8::/32"]),
    sample("macaddr", "macaddr", KEY, &["08:00:2b:01:02:03"]),
    sample("macaddr8", "macaddr8", KEY, &["08:00:2b:01:02:03:04:05"]),
    sample("pg_lsn", "pg_lsn", KEY, &["0/0", "FFFFFFFF/FFFFFFFF"]),
    sample("pg_snapshot", "pg_snapshot", NO_KEY, &["10:20:10,14,15"]),
    sample("txid_snapshot", "txid_snapshot", NO_KEY, &["10:20:10,14,15"]),
    sample("xid", "xid", NO_KEY, &["0", "4294967295"]),
    sample("xid8", "xid8", KEY, &["0", "18446744073709551615"]),
    sample("tid", "tid", KEY, &["(0,1)", "(4294967295,65535)"]),
    sample(
        "aclitem",
        "aclitem",
        NO_KEY,
        &["postgres=arwdDxt/postgres", "=r/postgres"],
    ),
    sample("int2vector", "int2vector", NO_KEY, &["", "1 -2 3"]),
    sample("oidvector", "oidvector", KEY, &["", "1 2 3"]),
    // Numbers of objects, which differ from server to server; their names do not.
    sample("regclass", "regclass", KEY, &["pg_class", "every.numbered", "-"]),
    sample(
        "regtype",
        "regtype",
        KEY,
        &["int4", "every.color", "every.pair[]"],
    ),
    sample("regproc", "regproc", KEY, &["every.only", "-"]),
    sample(
        "regprocedure",
        "regprocedure",
        KEY,
        &["every.only(int)", "pg_catalog.length(text)"],
    ),
    sample("regoper", "regoper", KEY, &["pg_catalog.||/"]),
    sample("regoperator", "regoperator", KEY, &["pg_catalog.+(int4,int4)"]),
    sample("regrole", "regrole", KEY, &["postgres", "every_role"]),
    sample("regnamespace", "regnamespace", KEY, &["pg_catalog", "every"]),
    sample(
        "regcollation",
        "regcollation",
        KEY,
        &["\"C\"", "every.numeric_collation"],
    ),
    sample("regconfig", "regconfig", KEY, &["english", "every.words"]),
    sample("regdictionary", "regdictionary", KEY, &["simple"]),
    sample(
        "regclasses",
        "regclass[]",
        KEY,
        &["{pg_class,every.numbered,NULL}"],
    ),
    // Arrays.
    sample(
        "int4s",
        "int4[]",
        KEY,
        &[
            "{}",
            "{1,NULL,-3}",
            "[-2:-1][0:1]={{1,2},{3,4}}",
            "{{{1},{2}},{{3},{4}}}",
        ],
    ),
    sample(
        "texts",
        "text[]",
        KEY,
        &["{\"\",NULL,\"NULL\",\"a,b\",\"c\\\\\"d\",\" e \"}"],
    ),
    sample("float8s", "float8[]", KEY, &["{-0,NaN,Infinity,0.1}"]),
    sample(
        "timestamptzs",
        "timestamptz[]",
        KEY,
        &["{\"2020-02-03 04:05:06+00\",infinity}"],
    ),
    sample(
        "intervals",
        "interval[]",
        KEY,
        &["{\"-1 year +2 mons -3 days +04:05:06\",\"00:00:01\"}"],
    ),
    sample("byteas", "bytea[]", KEY, &["{\"\\\\\\\\x00ff\",\"\"}"]),
    sample("monies", "money[]", KEY, &["{-1.25,1234567.89}"]),
    sample("points", "point[]", NO_KEY, &["{\"(0.1,-0)\"}"]),
    sample("boxes", "box[]", NO_KEY, &["{(3,4),(1,2);(7,8),(5,6)}"]),
    // Ranges.
    sample("int4range", "int4range", KEY, &["empty", "(,)", "[1,10)", "[,5)"]),
    sample("numrange", "numrange", KEY, &["[1.0,1.00]", "(NaN,)"]),
    sample("daterange", "daterange", KEY, &["[2020-02-03,infinity)"]),
    sample(
        "tstzrange",
        "tstzrange",
        KEY,
        &["(\"2020-02-03 04:05:06+00\",]", "[-infinity,infinity]"],
    ),
    sample("int4multirange", "int4multirange", KEY, &["{}", "{[1,3),[5,8)}"]),
    sample(
        "tsmultirange",
        "tsmultirange",
        KEY,
        &["{[\"2020-02-03 00:00:00\",\"2020-02-04 00:00:00\"]}"],
    ),
    sample("int4ranges", "int4range[]", KEY, &["{\"[1,3)\",empty}"]),
    sample(
        "floatrange",
        "every.floatrange",
        KEY,
        &["[0.1,0.30000000000000004)", "empty"],
    ),
    sample(
        "floatmultirange",
        "every.floatmultirange",
        KEY,
        &["{[0.1,0.2),[3,4)}"],
    ),
    sample("colorrange", "every.colorrange", KEY, &["[green,blue]"]),
    // Enums, composites, domains, and what is made of them.
    sample(
        "color",
        "every.color",
        KEY,
        &["red", "green", "a \"quoted\" one, with comma"],
    ),
    sample(
        "colors",
        "every.color[]",
        KEY,
        &["{red,NULL,\"a \\\\\"quoted\\\\\" one, with comma\"}"],
    ),
    sample(
        "pair",
        "every.pair",
        KEY,
        &["(1,\"a b\")", "(,)", "(7,\"q\"\"u,o\")"],
    ),
    sample("pairs", "every.pair[]", KEY, &["{\"(1,a)\",NULL,\"(,)\"}"]),
    sample(
        "nested",
        "every.nested",
        KEY,
        &["(\"(1,x)\",\"{red,blue}\",\"{\"\"(2,y)\"\"}\",\"2020-02-03 04:05:06+00\")"],
    ),
    sample("positive", "every.positive", KEY, &["1", "2147483647"]),
    sample("positives", "every.positive[]", KEY, &["{1,2,NULL}"]),
    sample(
        "two_or_more",
        "every.two_or_more",
        KEY,
        &["{1,2}", "[5:7]={1,2,3}"],
    ),
    sample("ordered", "every.ordered", KEY, &["(1,a)"]),
    sample("upper_name", "every.upper_name", KEY, &["ABC"]),
    sample(
        "everything",
        "every.everything",
        NO_KEY,
        &[
            "(t,-1,0.1,0.30000000000000004,1.50,$1.25,\"x \",a,\"\\\\\\\\x00ff\",2020-02-03,04:05:06+05:30,\"2020-02-03 04:05:06.000007\",\"2020-02-03 04:05:06+00\",\"-1 years +2 days -03:04:05\",101,\"{\"\"a\"\": 1.50}\",\"<a/>\",'a':1,\"(0.1,-0)\",10.0.0.1/8,\"[2020-02-03,2020-02-05)\",pg_catalog.pg_class,\"{1,NULL}\",\"{\"\"2020-02-03 04:05:06+00\"\"}\")",
            "(,,,,,,,,,,,,,,,,,,,,,,,)",
        ],
    ),
    // Extensions.
    sample(
        "hstore",
        "hstore",
        KEY,
        &["", "\"a\"=>\"1\", \"b\"=>NULL, \"c,\"=>\"\\\\\"\""],
    ),
    sample("citext", "citext", KEY, &["MiXed", ""]),
    sample("ltree", "ltree", KEY, &["a.b.c", ""]),
    sample("lquery", "lquery", NO_KEY, &["a.*{2}.!b|c@"]),
    sample("cube", "cube", KEY, &["(0.1,0.30000000000000004)", "(1),(2)"]),
    sample("isbn", "isbn", KEY, &["0-393-04002-X"]),
    sample("ean13", "ean13", KEY, &["978-0-393-04002-9"]),
];

/// What all types need, apart from those that differ between the nodes.
const COMMON: &str = "
    CREATE FUNCTION every.only(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1';
    CREATE TABLE every.numbered (id int);
    CREATE COLLATION every.numeric_collation FROM \"C\";
    CREATE TEXT SEARCH CONFIGURATION every.words (COPY = simple);
    CREATE TYPE every.floatrange AS RANGE (subtype = float8, multirange_type_name = every.floatmultirange);
    CREATE TYPE every.colorrange AS RANGE (subtype = every.color, multirange_type_name = every.colormultirange);
    CREATE DOMAIN every.positive AS int CHECK (VALUE > 0);
    CREATE DOMAIN every.two_or_more AS int[] CHECK (cardinality(VALUE) >= 2);
    CREATE DOMAIN every.ordered AS every.pair CHECK ((VALUE).a > 0);
    CREATE DOMAIN every.upper_name AS varchar(10) NOT NULL CHECK (VALUE = upper(VALUE));
    CREATE TYPE every.nested AS (p every.pair, c every.color[], ps every.pair[], at timestamptz);
    CREATE TYPE every.everything AS (b bool, i int8, f4 float4, f8 float8, n numeric, m money, c char(2), one \"char\",
        bin bytea, d date, tz timetz, ts timestamp, tstz timestamptz, iv interval, bits varbit, j jsonb, x xml, v tsvector,
        p point, ip inet, r daterange, reg regclass, arr int[], tstzs timestamptz[]);";

/// Schema and types; alike by name, made in another way on each of two nodes.
fn types(variant: usize) -> String {
    let mut script = String::from(
        "CREATE SCHEMA every; CREATE ROLE every_role;
         SET search_path TO public; SET check_function_bodies TO off;",
    );
    if variant == 0 {
        script.push_str(
            "CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE EXTENSION ltree; CREATE EXTENSION cube; CREATE EXTENSION isn;
             CREATE TYPE every.color AS ENUM ('red', 'green', 'blue', 'a \"quoted\" one, with comma');
             CREATE TYPE every.pair AS (a int, b text);",
        );
    } else {
        // Other numbers, another order of labels, attributes that were dropped.
        script.push_str(
            "CREATE TYPE every.unused1 AS ENUM ('x'); CREATE TYPE every.unused2 AS (x int); CREATE EXTENSION isn;
             CREATE TYPE every.color AS ENUM ('extra', 'red');
             ALTER TYPE every.color ADD VALUE 'blue'; ALTER TYPE every.color ADD VALUE 'a \"quoted\" one, with comma';
             ALTER TYPE every.color ADD VALUE 'green' BEFORE 'blue';
             CREATE TYPE every.pair AS (dropped xml, a int, gone float8, b text);
             ALTER TYPE every.pair DROP ATTRIBUTE dropped; ALTER TYPE every.pair DROP ATTRIBUTE gone;
             CREATE EXTENSION cube; CREATE EXTENSION ltree; CREATE EXTENSION citext; CREATE EXTENSION hstore;",
        );
    }
    script
}

/// Settings of a database that show in what values look like as text, and in how they are read.
pub(crate) fn odd_settings(database: &str, variant: usize) -> String {
    let settings: &[(&str, &str)] = if variant == 0 {
        &[
            ("datestyle", "'SQL, DMY'"),
            ("intervalstyle", "sql_standard"),
            ("extra_float_digits", "-15"),
            ("bytea_output", "escape"),
            ("timezone", "'Asia/Kolkata'"),
            ("quote_all_identifiers", "on"),
            ("search_path", "every, pg_catalog"),
        ]
    } else {
        &[
            ("datestyle", "'German'"),
            ("intervalstyle", "iso_8601"),
            ("extra_float_digits", "0"),
            ("timezone", "'America/St_Johns'"),
            ("array_nulls", "off"),
            ("xmloption", "document"),
            ("bytea_output", "escape"),
        ]
    };
    settings.iter().fold(String::new(), |mut script, (name, value)| {
        let _ = write!(script, "ALTER DATABASE {database} SET {name} TO {value};");
        script
    })
}

/// Makes a session's own settings the usual ones.
const USUAL: &str = "SET datestyle TO ISO, MDY; SET intervalstyle TO postgres; SET extra_float_digits TO 1; SET bytea_output TO hex;
    SET timezone TO 'UTC'; SET quote_all_identifiers TO off; SET search_path TO public; SET array_nulls TO on;
    SET xmloption TO content;";

/// Statements, with the usual settings.
pub(crate) fn usual(script: &str) -> String {
    format!("{USUAL} {script}")
}

impl Sample {
    fn tables(&self) -> impl Iterator<Item = String> {
        let kinds: &[char] = if self.key { &['p', 'f', 'k'] } else { &['p', 'f'] };
        kinds.iter().map(|kind| format!("every.{kind}_{}", self.name))
    }

    fn value(&self, place: usize) -> String {
        format!("E'{}'::{}", self.values[place].replace('\'', "''"), self.sql_type)
    }
}

/// All tables, by their qualified names; those with `p_` first.
pub(crate) fn tables() -> Vec<String> {
    let mut all: Vec<String> = SAMPLES.iter().flat_map(Sample::tables).collect();
    all.sort_by_key(|table| !table.starts_with(BY_NUMBER));
    all
}

/// How the names of tables begin that find rows by a number.
pub(crate) const BY_NUMBER: &str = "every.p_";

/// Makes types and empty tables on a node; `variant` 0 or 1 for the one and the other of two.
pub(crate) fn create(node: &Node, database: &str, variant: usize) -> Result<()> {
    let mut script = USUAL.to_owned();
    // New labels of an enum cannot be used before the transaction ends that adds them.
    node.exec(database, &types(variant))?;
    script.push_str(COMMON);
    for sample in SAMPLES {
        for table in sample.tables() {
            let columns = match (table.as_bytes()[6], variant) {
                (b'p', 0) => format!("id int PRIMARY KEY, v {}, n int", sample.sql_type),
                (b'p', _) => format!("n int, id int PRIMARY KEY, v {}", sample.sql_type),
                (b'k', _) => format!("v {} PRIMARY KEY, n int", sample.sql_type),
                _ => format!("v {}, n int", sample.sql_type),
            };
            let _ = write!(script, "CREATE TABLE {table} ({columns});");
            if table.as_bytes()[6] == b'f' {
                let _ = write!(script, "ALTER TABLE {table} REPLICA IDENTITY FULL;");
            }
        }
    }
    node.exec(database, &script)
}

/// Inserts all values into all tables, numbered from `first` on.
pub(crate) fn fill(node: &Node, database: &str, first: usize) -> Result<()> {
    fill_tables(node, database, first, &tables())
}

/// The same for some tables only.
pub(crate) fn fill_tables(node: &Node, database: &str, first: usize, tables: &[String]) -> Result<()> {
    let mut session = node.session(database)?;
    session.exec(USUAL)?;
    for sample in SAMPLES {
        let mut script = String::new();
        for place in 0..sample.values.len() {
            let (value, number) = (sample.value(place), first + place);
            for table in sample.tables().filter(|table| tables.contains(table)) {
                let _ = if table.starts_with(BY_NUMBER) {
                    write!(
                        script,
                        "INSERT INTO {table} (id, v, n) VALUES ({number}, {value}, 0);"
                    )
                } else {
                    write!(script, "INSERT INTO {table} (v, n) VALUES ({value}, {number});")
                };
            }
        }
        session.exec(&script)?;
    }
    Ok(())
}

/// Updates beside the values, updates of the values, and deletes, in all tables; for rows numbered from `first` on.
pub(crate) fn change(node: &Node, database: &str, first: usize) -> Result<()> {
    let mut session = node.session(database)?;
    session.exec(USUAL)?;
    for sample in SAMPLES {
        let mut script = String::new();
        let name = sample.name;
        let last = sample.values.len() - 1;
        let _ = write!(
            script,
            "UPDATE every.p_{name} SET n = n + 1; UPDATE every.f_{name} SET n = n + 100;
             UPDATE every.p_{name} SET v = {} WHERE id = {}; UPDATE every.f_{name} SET v = {} WHERE n = {};",
            sample.value(last),
            first,
            sample.value(last),
            first + 100,
        );
        if last > 0 {
            let _ = write!(
                script,
                "DELETE FROM every.f_{name} WHERE n = {};",
                first + last + 100
            );
        }
        if sample.key {
            let _ = write!(script, "UPDATE every.k_{name} SET n = n + 100;");
            if last > 0 {
                // The last value's row goes, and the first row becomes it.
                let _ = write!(
                    script,
                    "DELETE FROM every.k_{name} WHERE n = {}; UPDATE every.k_{name} SET v = {} WHERE n = {};",
                    first + last + 100,
                    sample.value(last),
                    first + 100
                );
            }
        }
        session.exec(&script)?;
    }
    Ok(())
}

/// The same in all tables of both nodes, to the last sign.
pub(crate) fn same(left: &Node, right: &Node, database: &str, when: &str) -> Result<()> {
    let contents = |node: &Node| -> Result<Vec<Vec<String>>> {
        let mut session = node.session(database)?;
        session.exec(USUAL)?;
        tables()
            .iter()
            .map(|table| {
                let id = if table.as_bytes()[6] == b'p' { "id" } else { "0" };
                let rows = session.rows(&format!("SELECT {id}, v::text, n FROM {table} ORDER BY 1, 3, 2"))?;
                Ok(rows
                    .iter()
                    .map(|row| sql::show(std::slice::from_ref(row)))
                    .collect())
            })
            .collect()
    };
    let (left_rows, right_rows) = (contents(left)?, contents(right)?);
    for ((table, left_rows), right_rows) in tables().iter().zip(&left_rows).zip(&right_rows) {
        ensure!(
            left_rows == right_rows,
            "{when}: {table} holds {left_rows:?} on {} and {right_rows:?} on {}",
            left.name,
            right.name
        );
        ensure!(
            !left_rows.is_empty(),
            "{when}: {table} is empty, so that nothing was compared"
        );
    }
    Ok(())
}
