-- ha.sub_skip_lsn and apply_delay: wrong input changes nothing. The subscription stands in the catalog only.
CREATE EXTENSION pg_ha;
SELECT ha.sub_skip_lsn('s', '0/1');
SELECT ha.sub_skip_lsn(NULL, '0/1');
INSERT INTO ha.node_catalog (node_id, node_name, group_name, dsn, node_uid, system_identifier)
    VALUES (7, 'n7', 'n7', :'dsn', 'e4eaaaf2-d142-11e1-b3e4-080027620cdd', '1');
INSERT INTO ha.subscription_catalog (subscription_name, provider_node_id, provider_dsn, slot_name, enabled,
                                     replication_sets, slot_lsn)
    VALUES ('s', 7, :'dsn', 'none', false, '{default}', '0/1000');
SELECT ha.sub_skip_lsn('s', '0/0');
SELECT ha.sub_skip_lsn('s', '0/1000');
SELECT skip_lsn FROM ha.subscriptions;
SELECT ha.sub_skip_lsn('s', '0/1001');
SELECT ha.sub_skip_lsn('s', '0/1001');
SELECT skip_lsn FROM ha.subscriptions;
SELECT ha.sub_skip_lsn('s', '0/2000');
SELECT skip_lsn FROM ha.subscriptions;
BEGIN;
SELECT ha.sub_skip_lsn('s', NULL);
ROLLBACK;
SELECT skip_lsn FROM ha.subscriptions;
SELECT ha.sub_skip_lsn('s', NULL);
SELECT ha.sub_skip_lsn('s', NULL);
SELECT skip_lsn FROM ha.subscriptions;
-- Delays
SELECT ha.sub_alter_options('s', '{"apply_delay": "-1 s"}');
SELECT ha.sub_alter_options('s', '{"apply_delay": "soon"}');
SELECT ha.sub_alter_options('s', '{"apply_delay": "90 minutes"}');
SELECT apply_delay FROM ha.subscriptions;
SELECT ha.sub_alter_options('s', '{"apply_delay": "5400 s"}');
SELECT ha.sub_alter_options('s', '{"apply_delay": null}');
SELECT apply_delay FROM ha.subscriptions;
\set VERBOSITY terse
SELECT ha.sub_create('d', 'host=/nowhere', apply_delay => '-1 day');
SELECT ha.sub_create('d', 'host=/nowhere', apply_delay => NULL);
SET ROLE pg_monitor;
SELECT ha.sub_skip_lsn('s', '0/3000');
