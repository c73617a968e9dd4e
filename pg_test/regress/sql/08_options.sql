-- Options of a subscription. The subscription stands in the catalog only: nothing is behind it, and this server is no node.
CREATE EXTENSION pg_ha;
SELECT ha.sub_alter_options('s', '{}');
SELECT ha.sub_alter_options(NULL, '{}');
INSERT INTO ha.node_catalog (node_id, node_name, group_name, dsn, node_uid, system_identifier)
    VALUES (7, 'n7', 'n7', :'dsn', 'e4eaaaf2-d142-11e1-b3e4-080027620cdd', '1');
INSERT INTO ha.subscription_catalog (subscription_name, provider_node_id, provider_dsn, slot_name, enabled,
                                     replication_sets)
    VALUES ('s', 7, :'dsn', 'none', false, '{default}');
SELECT ha.sub_alter_options('s', NULL);
SELECT ha.sub_alter_options('s', '[]');
SELECT ha.sub_alter_options('s', '{"speed": 1}');
SELECT ha.sub_alter_options('s', '{"workers": 0}');
SELECT ha.sub_alter_options('s', '{"run_as": "me"}');
SELECT ha.sub_alter_options('s', '{"apply_delay": 5}');
SELECT ha.sub_alter_options('s', '{"forward_origins": ["a", "a"]}');
-- Setting back what was never set changes nothing.
SELECT ha.sub_alter_options('s', '{}');
SELECT ha.sub_alter_options('s', '{"workers": null, "apply_delay": null, "copy_workers": null}');
SELECT ha.sub_alter_options('s', '{"streaming": 1}');
SELECT ha.sub_alter_options('s', '{"streaming": false}');
SELECT ha.sub_alter_options('s', '{"streaming": false}');
SELECT options FROM ha.subscriptions;
SELECT ha.sub_alter_options('s', '{"streaming": null}');
SELECT ha.sub_alter_options('s', '{"two_phase": true}');
UPDATE ha.subscription_catalog SET options = '{"two_phase": true}';
SELECT ha.sub_alter_options('s', '{"two_phase": null}');
UPDATE ha.subscription_catalog SET options = '{}';
SELECT options, forward_origins, apply_delay FROM ha.subscriptions;
