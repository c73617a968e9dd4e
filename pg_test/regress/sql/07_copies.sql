-- Copying tables: wrong input changes nothing. The subscription is written by hand and leads back to this database;
-- this server is no node, so that nothing runs.
CREATE EXTENSION pg_ha;
SELECT ha.sub_resync_table('s', 'pg_class');
SELECT ha.sub_resync_table(NULL, 'pg_class');
SELECT ha.sub_wait_for_sync('s');
SELECT ha.sub_wait_for_sync(NULL);
\set VERBOSITY terse
SELECT * FROM ha.sub_show_table('s', 'pg_class');
SELECT * FROM ha.sub_show_table(NULL, 'pg_class');
\set VERBOSITY default
INSERT INTO ha.node_catalog (node_id, node_name, group_name, dsn, node_uid, system_identifier)
    VALUES (7, 'n7', 'n7', :'dsn', 'e4eaaaf2-d142-11e1-b3e4-080027620cdd', '1');
INSERT INTO ha.subscription_catalog (subscription_name, provider_node_id, provider_dsn, slot_name, enabled,
                                     replication_sets)
    VALUES ('s', 7, :'dsn', 'none', false, '{default}');
CREATE TABLE published (id integer PRIMARY KEY);
CREATE TABLE other (id integer PRIMARY KEY);
CREATE TABLE parts (id integer PRIMARY KEY) PARTITION BY RANGE (id);
CREATE UNLOGGED TABLE quick (id integer PRIMARY KEY);
CREATE TEMPORARY TABLE mine (id integer PRIMARY KEY);
CREATE VIEW v AS SELECT * FROM published;
SELECT ha.repset_add_table('default', 'published');
SELECT ha.sub_resync_table('s', NULL);
SELECT ha.sub_resync_table('s', 'published', NULL);
SELECT ha.sub_resync_table('s', 0::regclass);
SELECT ha.sub_resync_table('s', 'parts');
\set VERBOSITY terse
SELECT ha.sub_resync_table('s', 'quick');
SELECT ha.sub_resync_table('s', 'mine');
SELECT ha.sub_resync_table('s', 'v');
SELECT ha.sub_resync_table('s', 'ha.node_catalog');
SELECT ha.sub_resync_table('s', 'pg_class');
SELECT ha.sub_resync_table('s', 'other');
\set VERBOSITY default
SELECT count(*) FROM ha.subscription_tables;
SELECT ha.sub_wait_for_sync('s', '1 ms');
-- What is right is noted, shown, and asked for anew.
SELECT ha.sub_resync_table('s', 'published');
SELECT nspname, relname, state, existing_rows, sync_lsn FROM ha.subscription_tables;
SELECT ha.sub_resync_table('s', 'published', truncate => false);
SELECT nspname, relname, state, existing_rows, sync_lsn FROM ha.subscription_tables;
SELECT * FROM ha.sub_show_table('s', 'published');
SELECT * FROM ha.sub_show_table('s', NULL);
SELECT * FROM ha.sub_show_table('s', 0::regclass);
SELECT * FROM ha.sub_show_table('s', 'other');
SELECT relation, sync_state, copy_rows, copy_percent FROM ha.status_tables;
SELECT status, copy_tables_done, copy_tables_total, copy_rows, copy_percent, copy_eta FROM ha.status_subscriptions;
-- What a table was copied with, it keeps; a name that is gone is still there to be told.
UPDATE ha.subscription_tables SET state = 'ready', sync_lsn = '0/10', copy_rows = 12;
SELECT relation, sync_state, copy_rows, copy_percent FROM ha.status_tables;
-- Nobody can tell how long a copy will take that does not run, however long ago the others were.
INSERT INTO ha.subscription_tables (subscription_id, nspname, relname, asked_at)
    SELECT subscription_id, nspname, 'other', now() - interval '1 day' FROM ha.subscription_tables;
SELECT status, copy_tables_done, copy_tables_total, copy_rows, copy_percent, copy_eta FROM ha.status_subscriptions;
DELETE FROM ha.subscription_tables WHERE relname = 'other';
UPDATE ha.subscription_tables SET state = 'init', failed = true, last_error = 'copy of table public.published failed: why';
DROP VIEW v;
DROP TABLE published;
SELECT relation, relname, status, last_error FROM ha.copied_tables;
SELECT status, copy_tables_done, copy_tables_total, last_error FROM ha.status_subscriptions;
SELECT ha.sub_drop('s');
SELECT count(*) FROM ha.subscription_tables;
-- The setting
SHOW ha.sync_workers;
SET ha.sync_workers = 3;
ALTER SYSTEM SET ha.sync_workers = 65;
