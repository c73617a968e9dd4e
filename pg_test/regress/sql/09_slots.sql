-- Slots: what is shown of them, waiting for them, and wrong input. Nobody reads from these.
CREATE EXTENSION pg_ha;
SELECT slot_name, plugin FROM ha.status_slots WHERE database = current_database();
SELECT ha.wait_slot_confirm_lsn('regress_none');
SELECT ha.wait_slot_confirm_lsn('regress_none', '0/1', '1 ms');
-- Without subscribers there is nobody to wait for.
SELECT ha.wait_slot_confirm_lsn();
SELECT ha.wait_slot_confirm_lsn(NULL, 'FFFFFFFF/0', '1 ms');
SELECT FROM pg_create_logical_replication_slot('regress_other', 'test_decoding', true);
SELECT slot_name, slot_type, plugin, database = current_database() AS here, subscriber, active, temporary,
       retained_bytes >= 0 AS retains, unconfirmed_bytes >= 0 AS unconfirmed, limit_bytes, wal_status, synced, failover,
       conflicting IS TRUE AS conflicting, invalidation_reason
  FROM ha.status_slots WHERE slot_name = 'regress_other';
SELECT ha.wait_slot_confirm_lsn('regress_other', '0/1');
SELECT ha.wait_slot_confirm_lsn('regress_other', 'FFFFFFFF/0', '10 ms');
SELECT ha.wait_slot_confirm_lsn('regress_other', 'FFFFFFFF/0', '-1 s');
-- A slot of pg_ha's plugin, of a subscriber that is not known here.
INSERT INTO ha.node_catalog (node_id, node_name, group_name, dsn, node_uid, system_identifier)
    VALUES (7, 'n7', 'n7', :'dsn', 'e4eaaaf2-d142-11e1-b3e4-080027620cdd', '1');
SELECT FROM pg_create_logical_replication_slot('pg_ha_7_regress', 'pg_ha');
SELECT FROM pg_create_logical_replication_slot('pg_ha_77_regress', 'pg_ha');
SELECT slot_name, subscriber FROM ha.status_slots WHERE database = current_database() AND plugin = 'pg_ha' ORDER BY 1;
SELECT ha.wait_slot_confirm_lsn('pg_ha_7_regress', 'FFFFFFFF/0', '10 ms');
SELECT FROM pg_drop_replication_slot('pg_ha_7_regress');
SELECT FROM pg_drop_replication_slot('pg_ha_77_regress');
SELECT FROM pg_drop_replication_slot('regress_other');
-- Who may see and do what
SET ROLE pg_monitor;
SELECT count(*) FROM ha.status_slots WHERE database = 'none';
SELECT ha.wait_slot_confirm_lsn();
RESET ROLE;
SHOW ha.max_slot_retained;
SET ha.max_slot_retained = '1GB';
-- How the range is shown differs between servers.
\set VERBOSITY sqlstate
ALTER SYSTEM SET ha.max_slot_retained = -1;
\set VERBOSITY default
