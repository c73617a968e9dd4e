//! The tables of `one_way`.

pub(crate) const TYPES: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
    CREATE TYPE pair AS (x int, y text);
    CREATE DOMAIN posint AS int CHECK (VALUE > 0);
    CREATE TABLE types (
        id int PRIMARY KEY, b boolean, i2 smallint, i8 bigint, n numeric, money numeric(12,2), r real,
        d double precision, t text, v varchar(20), c char(5), bin bytea, u uuid, dt date, ts timestamp,
        tz timestamptz, tm time, iv interval, j json, jb jsonb, arr int[], ta text[], ip inet, pt point,
        rng int4range, m mood, dom posint, comp pair, bits bit varying, lsn pg_lsn, o oid, nm name)";

pub(crate) const INSERT_TYPES: &str = "
    INSERT INTO types VALUES
    (1, true, -32768, 9223372036854775807, 12345678901234567890.123456789, -0.01, 1.1, 0.1, 'plain', 'v', 'c',
     '\\xdeadbeef', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '2026-02-28', '2026-03-29 02:30:00',
     '2026-03-29 02:30:00.123456+00', '23:59:59.999999', '1 year 2 months 3 days 04:05:06.789', '{\"a\": [1,  2]}',
     '{\"b\": null}', '{{1,2},{3,NULL}}', ARRAY['a,b', 'c\"d', NULL, ''], '10.1.2.3/24', '(1.5,-2)', '[1,10)', 'ok', 7,
     ROW(1, 'a \"q\", (b)'), B'10101', '16/B374D848', 4294967295, 'n'),
    (2, false, 32767, -9223372036854775807, 'NaN', 9999999999.99, '-Infinity', 'Infinity', E'tab\\tnew\\nline \\\\ ''q''',
     '', '', '', '00000000-0000-0000-0000-000000000000', '-infinity', 'infinity', '-infinity', '00:00',
     '-178000 years', 'null', '[]', '{}', '{}', '::1', '(NaN,Infinity)', 'empty', 'sad', 1, ROW(NULL, NULL),
     B'', '0/0', 0, ''),
    (4, true, 0, 0, 1e-50, 0, 3.4e38, 1.7976931348623157e308, 'snow ☃ and 🐘', 'é', 'ab', '\\x00', NULL, '0044-03-15 BC',
     '294276-12-31 23:59:59.999999', '4713-01-01 00:00:00+00 BC', '12:00', '-00:00:00.000001', '\"s\"', '1.10',
     '[0:1]={5,6}', '{{a},{b}}', 'fe80::1', '(0,0)', '(,5]', 'happy', 2147483647, ROW(0, ''),
     B'1', 'FFFFFFFF/FFFFFFFF', 1, 'zz');
    INSERT INTO types (id) VALUES (3)";

pub(crate) const IDENTITY: &str = "
    CREATE TABLE keyed (id int PRIMARY KEY, v text);
    CREATE TABLE compound (a int, b text, v int, PRIMARY KEY (b, a));
    CREATE TABLE by_index (id int, code text NOT NULL UNIQUE, n int);
    ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code_key;
    CREATE TABLE whole_row (a int, v text, p point);
    ALTER TABLE whole_row REPLICA IDENTITY FULL";

pub(crate) const ODD_NAMES: &str = "
    CREATE SCHEMA \"Odd Schema\";
    CREATE TABLE \"Odd Schema\".\"quo\"\"ted, \\ Table\" (\"ÜMLAUT\" int PRIMARY KEY, \"sel ect\" text, \"order\" boolean)";
