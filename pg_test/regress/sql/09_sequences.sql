-- Sequences in replication sets: what can be added, what cannot and why, and what subscribers are told. This server is
-- no node, so that only what is asked for is told.
CREATE EXTENSION pg_ha;
CREATE TABLE t (id serial PRIMARY KEY, other integer GENERATED ALWAYS AS IDENTITY);
CREATE SEQUENCE plain;
CREATE SEQUENCE down INCREMENT -5;
CREATE SEQUENCE small AS smallint;
CREATE UNLOGGED SEQUENCE quick;
CREATE TEMPORARY SEQUENCE mine;
SELECT ha.repset_add_seq('default', 'plain');
SELECT ha.repset_add_seq('default', 'plain');
SELECT ha.repset_add_seq('none', 'plain');
SELECT ha.repset_add_seq('default', NULL);
SELECT ha.repset_add_seq(NULL, 'plain');
SELECT ha.repset_add_seq('default', 'plain', NULL);
SELECT ha.repset_add_seq('default', 0::regclass);
SELECT ha.repset_add_seq('default', 't');
SELECT ha.repset_add_seq('default', 'quick');
SELECT ha.repset_add_seq('default', 'mine');
SELECT ha.repset_add_seq('default', 'ha.replication_sets_set_id_seq');
SELECT ha.repset_add_table('default', 'plain');
SELECT ha.repset_remove_seq('default', 'down');
SELECT ha.repset_remove_seq('default', 't');
SELECT ha.sync_seq('down');
SELECT ha.sync_seq('t');
SELECT ha.sync_seq(NULL);
-- Nothing is told before the first value.
SELECT ha.sync_seq('plain');
SELECT nextval('plain');
SELECT ha.sync_seq('plain');
SELECT * FROM ha.status_sequences ORDER BY 1;
-- Downwards, at bounds, and with another buffer.
SELECT nextval('down'), nextval('down');
SELECT setval('small', 32000);
SELECT ha.repset_add_seq('default', 'down', true), ha.repset_add_seq('default_insert_only', 'small', true);
ALTER SYSTEM SET ha.sequence_buffer = 0;
SELECT * FROM ha.status_sequences ORDER BY 1;
-- What other nodes are answered: those in the sets, and those of the tables' columns.
SELECT ha.repset_add_table('default', 't');
INSERT INTO t DEFAULT VALUES;
SELECT * FROM ha.sequence_values('{default}');
SELECT * FROM ha.sequence_values('{default_insert_only}');
SELECT * FROM ha.sequence_values('{}');
-- A dropped sequence leaves its sets, a dropped set its sequences.
SELECT ha.repset_create('other'), ha.repset_add_seq('other', 'plain');
SELECT ha.repset_drop('other');
DROP SEQUENCE down;
DROP TABLE t;
SELECT s.set_name, q.relation FROM ha.replication_set_sequences q JOIN ha.replication_sets s USING (set_id) ORDER BY 1, 2;
SELECT ha.repset_remove_seq('default', 'plain');
SELECT relation, replication_sets FROM ha.status_sequences ORDER BY 1;
