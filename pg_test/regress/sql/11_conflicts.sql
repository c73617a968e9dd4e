-- The history of conflicts: what is shown of it and to whom. Nothing is applied here; the rows are made up.
CREATE EXTENSION pg_ha;
SELECT * FROM ha.conflicts;
SELECT a.attname, format_type(a.atttypid, a.atttypmod) AS type, col_description(a.attrelid, a.attnum) IS NOT NULL AS told
  FROM pg_attribute a WHERE a.attrelid = 'ha.conflicts'::regclass AND a.attnum > 0 ORDER BY a.attnum;
CREATE ROLE regress_watcher IN ROLE pg_monitor;
CREATE ROLE regress_reader IN ROLE pg_monitor;
CREATE ROLE regress_auditor IN ROLE pg_monitor, pg_read_all_data;
CREATE ROLE regress_archivist BYPASSRLS IN ROLE pg_monitor, pg_read_all_data;
CREATE ROLE regress_nobody;
CREATE TABLE open (id int PRIMARY KEY, v text);
CREATE TABLE guarded (id int PRIMARY KEY, v text);
ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
CREATE TABLE part_of (id int PRIMARY KEY, v text);
CREATE TABLE gone (id int PRIMARY KEY, v text);
GRANT SELECT ON open, guarded, gone TO regress_reader;
GRANT SELECT (id) ON part_of TO regress_reader;
INSERT INTO ha.conflict_history (at, subscription_name, relation, relation_name, conflict_type, resolution, key, local_row,
                                 local_origin, local_commit_ts, remote_row, remote_origin, remote_commit_ts, remote_lsn, omitted)
    SELECT now(), 's', t, 'public.' || t, 'update_origin_differs', 'keep_local', '{"id": 1}', '{"id": 1, "v": "here"}', 'n1', now(),
           '{"id": 1}', 'n2', now(), '0/1', '{"remote_row": {"v": "unchanged"}}'
      FROM unnest('{open,guarded,part_of,gone}'::regclass[]) t;
DROP TABLE gone;
\set look 'SELECT current_user, relation_name, relation::text = split_part(relation_name, ''.'', 2) AS exists, key, local_row, remote_row, omitted FROM ha.conflicts ORDER BY conflict_id;'
:look
SET ROLE regress_watcher;
:look
SELECT count(*) FROM ha.conflict_history;
SET ROLE regress_reader;
:look
-- Looking for what is not shown finds nothing.
SELECT relation_name FROM ha.conflicts WHERE local_row ->> 'v' = 'here' ORDER BY 1;
SET ROLE regress_auditor;
:look
SET ROLE regress_archivist;
:look
SET ROLE regress_nobody;
:look
SET ROLE ha_replication;
:look
RESET ROLE;
-- Neither replicated nor dumped
SELECT ha.repset_add_table('default', 'ha.conflict_history');
SELECT 'ha.conflict_history'::regclass = ANY (extconfig) AS dumped FROM pg_extension WHERE extname = 'pg_ha';
-- Settings
SELECT name, setting, unit, min_val, max_val, context FROM pg_settings
 WHERE name IN ('ha.conflict_retention', 'ha.max_conflicts', 'ha.conflict_max_row_size') ORDER BY 1;
SHOW ha.conflict_retention;
SHOW ha.conflict_max_row_size;
SET ha.max_conflicts = 5;
-- How ranges are shown differs between servers.
\set VERBOSITY sqlstate
ALTER SYSTEM SET ha.max_conflicts = -1;
ALTER SYSTEM SET ha.conflict_retention = '59s';
ALTER SYSTEM SET ha.conflict_max_row_size = '129MB';
\set VERBOSITY default
DROP TABLE open, guarded, part_of;
DROP ROLE regress_watcher, regress_reader, regress_auditor, regress_archivist, regress_nobody;
