//! Tables of many types.

use super::Table;
use super::values::Kind::{Int, Number, OneOf, Word};

pub(super) const TABLES: &[Table] = &[
    Table::new(
        "numbers",
        "CREATE TABLE numbers (id smallint PRIMARY KEY, i8 bigint, n numeric, m numeric(12,2), r real, d double precision, c money, b boolean)",
        &[
            ("id", Number),
            (
                "i8",
                OneOf(&["9223372036854775807", "-9223372036854775808", "0", "NULL"]),
            ),
            (
                "n",
                OneOf(&[
                    "'NaN'",
                    "'Infinity'",
                    "1e-50",
                    "12345678901234567890.123456789",
                    "-0.0100",
                    "1e200",
                ]),
            ),
            ("m", OneOf(&["-0.01", "9999999999.99", "0", "NULL"])),
            ("r", OneOf(&["1.1", "'-Infinity'", "3.4e38", "1e-45", "'-0'"])),
            (
                "d",
                OneOf(&[
                    "0.1",
                    "1.7976931348623157e308",
                    "5e-324",
                    "'NaN'",
                    "0.30000000000000004",
                ]),
            ),
            ("c", OneOf(&["12.34", "-99999.99", "NULL"])),
            ("b", OneOf(&["true", "false", "NULL"])),
        ],
    ),
    Table::new(
        "times",
        "CREATE TABLE times (id int PRIMARY KEY, d date, ts timestamp, tz timestamptz(3), t time, tt timetz, iv interval)",
        &[
            ("id", Number),
            (
                "d",
                OneOf(&[
                    "'-infinity'",
                    "'0044-03-15 BC'",
                    "'2026-02-28'",
                    "'5874897-12-31'",
                    "NULL",
                ]),
            ),
            (
                "ts",
                OneOf(&[
                    "'infinity'",
                    "'294276-12-31 23:59:59.999999'",
                    "'2026-03-29 02:30:00'",
                    "'4713-01-01 BC'",
                ]),
            ),
            (
                "tz",
                OneOf(&[
                    "'-infinity'",
                    "'2026-10-25 02:30:00.1234+02'",
                    "'0001-01-01 00:00:00+14'",
                    "NULL",
                ]),
            ),
            ("t", OneOf(&["'00:00'", "'24:00'", "'23:59:59.999999'"])),
            ("tt", OneOf(&["'00:00+14'", "'12:34:56.789-15:59'", "NULL"])),
            (
                "iv",
                OneOf(&[
                    "'1 year 2 months -3 days 04:05:06.789'",
                    "'-178000 years'",
                    "'-00:00:00.000001'",
                    "'0'",
                    "NULL",
                ]),
            ),
        ],
    ),
    Table::new(
        "texts",
        "CREATE TABLE texts (id int PRIMARY KEY, v varchar(20), c char(5), n name, ch \"char\", b bytea, ci citext)",
        &[
            ("id", Number),
            (
                "v",
                OneOf(&["''", "'é'", "'null'", "NULL", "E'\\\\N'", "E'a\\tb\\nc'"]),
            ),
            ("c", OneOf(&["'c'", "'     '", "'abcde'", "NULL"])),
            ("n", OneOf(&["'name'", "''"])),
            ("ch", OneOf(&["'x'", "''", "NULL"])),
            (
                "b",
                OneOf(&["'\\xdeadbeef'", "'\\x'", "'\\x00'", "sha512('x')", "NULL"]),
            ),
            ("ci", OneOf(&["'CaSe'", "'case'", "NULL"])),
        ],
    ),
    Table::new(
        "geometry",
        "CREATE TABLE geometry (id int, p point, l line, s lseg, b box, pa path, po polygon, c circle, PRIMARY KEY (id))",
        &[
            ("id", Number),
            (
                "p",
                OneOf(&[
                    "'(1.5,-2)'",
                    "'(NaN,Infinity)'",
                    "'(0.1,0.30000000000000004)'",
                    "NULL",
                ]),
            ),
            ("l", OneOf(&["'{1,2,3}'", "NULL"])),
            ("s", OneOf(&["'[(0,0),(1,1.1)]'", "NULL"])),
            ("b", OneOf(&["'(2,2),(1,1)'", "NULL"])),
            ("pa", OneOf(&["'[(0,0),(1,1),(2,0)]'", "'((0,0),(1,1))'", "NULL"])),
            ("po", OneOf(&["'((0,0),(1,1),(2,0))'", "NULL"])),
            ("c", OneOf(&["'<(1,2),3.3>'", "NULL"])),
        ],
    ),
    Table::new(
        "networks",
        "CREATE TABLE networks (id int PRIMARY KEY, i inet, c cidr, m macaddr, m8 macaddr8)",
        &[
            ("id", Number),
            ("i", OneOf(&["'10.1.2.3/24'", "'::1'", "'fe80::1/10'", "NULL"])),
            ("c", OneOf(&["'10.0.0.0/8'", "'2001:db8::/32'", "NULL"])),
            ("m", OneOf(&["'08:00:2b:01:02:03'", "NULL"])),
            ("m8", OneOf(&["'08:00:2b:01:02:03:04:05'", "NULL"])),
        ],
    ),
    Table::new(
        "ranges",
        "CREATE TABLE ranges (id int PRIMARY KEY, i int4range, n numrange, t tstzrange, d daterange, m int8multirange, f floatrange)",
        &[
            ("id", Number),
            ("i", OneOf(&["'[1,10)'", "'empty'", "'(,5]'", "NULL"])),
            ("n", OneOf(&["'(0.1,NaN)'", "'[1.10,)'", "NULL"])),
            ("t", OneOf(&["'[2026-01-01,infinity)'", "'(,)'", "NULL"])),
            ("d", OneOf(&["'[2026-01-01,2026-02-01]'", "NULL"])),
            ("m", OneOf(&["'{[1,2),[5,9)}'", "'{}'", "NULL"])),
            ("f", OneOf(&["'[0.1,0.3)'", "NULL"])),
        ],
    ),
    Table::new(
        "arrays",
        "CREATE TABLE arrays (id int PRIMARY KEY, i int[], t text[], m mood[], p pair[], d posint[], n numeric[][], r int4range[])",
        &[
            ("id", Number),
            (
                "i",
                OneOf(&["'{{1,2},{3,NULL}}'", "'{}'", "'[0:1]={5,6}'", "NULL"]),
            ),
            (
                "t",
                OneOf(&["ARRAY['a,b', 'c\"d', NULL, '']", "'{{a},{b}}'", "NULL"]),
            ),
            ("m", OneOf(&["'{sad,ok}'", "'{NULL}'", "NULL"])),
            (
                "p",
                OneOf(&["ARRAY[ROW(1, 'a \"q\", (b)')::pair, NULL]", "'{}'", "NULL"]),
            ),
            ("d", OneOf(&["'{1,2}'", "NULL"])),
            ("n", OneOf(&["'{{1.10,NaN}}'", "NULL"])),
            ("r", OneOf(&["ARRAY['[1,2)'::int4range, 'empty']", "NULL"])),
        ],
    ),
    Table::new(
        "own_types",
        "CREATE TABLE own_types (id posint PRIMARY KEY, m mood, d word, p pair, h hstore)",
        &[
            ("id", Number),
            ("m", OneOf(&["'sad'", "'ok'", "'happy'", "NULL"])),
            ("d", OneOf(&["'word'", "''", "NULL"])),
            (
                "p",
                OneOf(&["ROW(1, 'a \"q\", (b)')", "ROW(NULL, NULL)", "ROW(0, '')", "NULL"]),
            ),
            ("h", OneOf(&["'a=>1, \"b c\"=>NULL'", "''", "NULL"])),
        ],
    ),
    Table::new(
        "documents",
        "CREATE TABLE documents (id int PRIMARY KEY, j json, jb jsonb, jp jsonpath, x xml)",
        &[
            ("id", Number),
            ("j", OneOf(&["'{\"a\": [1,  2]}'", "'null'", "'\"s\"'", "NULL"])),
            (
                "jb",
                OneOf(&["'{\"b\": null, \"n\": 1.10}'", "'[]'", "'\"\\u00e9\"'", "NULL"]),
            ),
            ("jp", OneOf(&["'$.a[*] ? (@ > 1)'", "NULL"])),
            ("x", OneOf(&["'<a b=\"c\">&amp;</a>'", "'text'", "NULL"])),
        ],
    ),
    Table::new(
        "searches",
        "CREATE TABLE searches (id int PRIMARY KEY, v tsvector, q tsquery); CREATE INDEX ON searches USING gin (v)",
        &[
            ("id", Number),
            (
                "v",
                OneOf(&[
                    "'a:1A fat:2B cat:3'",
                    "''",
                    "to_tsvector('english', 'The quick brown foxes')",
                    "NULL",
                ]),
            ),
            ("q", OneOf(&["'fat & (rat | !cat:B*)'", "NULL"])),
        ],
    ),
    Table::new(
        "bits",
        "CREATE TABLE bits (id int PRIMARY KEY, b bit(7), v bit varying, l pg_lsn, o oid, x xid8, t tid)",
        &[
            ("id", Number),
            ("b", OneOf(&["B'1010101'", "NULL"])),
            ("v", OneOf(&["B''", "B'1'", "B'110011001100110011'", "NULL"])),
            ("l", OneOf(&["'16/B374D848'", "'FFFFFFFF/FFFFFFFF'", "NULL"])),
            ("o", OneOf(&["4294967295", "0", "NULL"])),
            ("x", OneOf(&["'18446744073709551615'", "NULL"])),
            ("t", OneOf(&["'(1,2)'", "NULL"])),
        ],
    ),
    // Keys of types whose equality is not that of their bytes.
    Table::new(
        "by_citext",
        "CREATE TABLE by_citext (code citext PRIMARY KEY, n int)",
        &[("code", Word), ("n", Int)],
    )
    .number("substr(code::text, 2)::int")
    .special(&["UPDATE by_citext SET code = upper(code::text) WHERE code = 'k{a}'"]),
    Table::new(
        "by_numeric",
        "CREATE TABLE by_numeric (id numeric PRIMARY KEY, n int)",
        &[("id", Number), ("n", Int)],
    )
    .number("id::int")
    .special(&["UPDATE by_numeric SET id = (id::int || '.00')::numeric WHERE id = {a}"]),
];
