-- What the extension consists of: every function and table says what it is for, and nobody but a superuser may
-- change anything.
\set VERBOSITY terse
CREATE EXTENSION pg_ha;
-- without a comment, or with an argument that has no name
SELECT p.oid::regprocedure
  FROM pg_proc p WHERE p.pronamespace = 'ha'::regnamespace AND obj_description(p.oid, 'pg_proc') IS NULL;
SELECT p.oid::regprocedure
  FROM pg_proc p
 WHERE p.pronamespace = 'ha'::regnamespace AND p.pronargs > 0
   AND (p.proargnames IS NULL OR '' = ANY (p.proargnames));
SELECT c.oid::regclass
  FROM pg_class c
 WHERE c.relnamespace = 'ha'::regnamespace AND c.relkind IN ('r', 'v') AND obj_description(c.oid, 'pg_class') IS NULL;
-- what PUBLIC may call
SELECT p.oid::regprocedure, p.provolatile
  FROM pg_proc p WHERE p.pronamespace = 'ha'::regnamespace AND has_function_privilege('public', p.oid, 'EXECUTE')
 ORDER BY 1;
-- what members of ha_replication and of pg_monitor may call and read
SELECT r.role, p.oid::regprocedure
  FROM pg_proc p, (VALUES ('ha_replication'), ('pg_monitor')) r (role)
 WHERE p.pronamespace = 'ha'::regnamespace AND has_function_privilege(r.role, p.oid, 'EXECUTE')
   AND NOT has_function_privilege('public', p.oid, 'EXECUTE')
   AND p.proname IN ('node_info', 'node_exchange', 'doctor', 'events_read', 'node_create', 'sub_create', 'sub_drop')
 ORDER BY 1, p.oid::regprocedure::text;
SELECT r.role, c.oid::regclass
  FROM pg_class c, (VALUES ('ha_replication'), ('pg_monitor')) r (role)
 WHERE c.relname IN ('node_catalog', 'subscription_catalog', 'nodes', 'subscriptions', 'replication_sets',
                     'replication_set_tables', 'events')
   AND c.relnamespace = 'ha'::regnamespace AND has_table_privilege(r.role, c.oid, 'SELECT')
 ORDER BY 1, c.oid::regclass::text;
SELECT count(*) AS writable
  FROM pg_class c, (VALUES ('public'), ('ha_replication'), ('pg_monitor')) r (role)
 WHERE c.relnamespace = 'ha'::regnamespace AND c.relkind IN ('r', 'v')
   AND has_table_privilege(r.role, c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE');
-- everything that changes something runs under a fixed search_path
SELECT p.oid::regprocedure
  FROM pg_proc p
 WHERE p.pronamespace = 'ha'::regnamespace AND p.prosecdef AND p.proconfig IS NULL;
-- the tables that logical decoding reads
SELECT c.oid::regclass, c.reloptions FROM pg_class c WHERE c.relnamespace = 'ha'::regnamespace AND c.reloptions IS NOT NULL ORDER BY 1;
SELECT set_id, set_name, replicate_insert AS i, replicate_update AS u, replicate_delete AS d, replicate_truncate AS t
  FROM ha.replication_sets ORDER BY 1;
-- the schema is the extension's own
\set VERBOSITY default
DROP SCHEMA ha CASCADE;
DROP EXTENSION pg_ha;
SELECT count(*) FROM pg_namespace WHERE nspname = 'ha';
CREATE EXTENSION pg_ha;
