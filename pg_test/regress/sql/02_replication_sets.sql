-- Replication sets: made, changed, dropped, and every wrong use refused with a way out.
CREATE EXTENSION pg_ha;
SELECT ha.repset_create('orders') > 100 AS made;
SELECT ha.repset_create('audit', replicate_update => false, replicate_delete => false, replicate_truncate => false) > 100 AS made;
SELECT set_name, replicate_insert AS i, replicate_update AS u, replicate_delete AS d, replicate_truncate AS t
  FROM ha.replication_sets WHERE set_name IN ('orders', 'audit') ORDER BY 1;
SELECT ha.repset_create('orders');
SELECT ha.repset_create('');
SELECT ha.repset_create(NULL);
SELECT ha.repset_create('x', replicate_insert => NULL);
SELECT ha.repset_alter('audit', replicate_truncate => true) = (SELECT set_id FROM ha.replication_sets WHERE set_name = 'audit') AS altered;
SELECT ha.repset_alter('nowhere', replicate_truncate => true);
SELECT replicate_insert AS i, replicate_update AS u, replicate_delete AS d, replicate_truncate AS t
  FROM ha.replication_sets WHERE set_name = 'audit';
SELECT ha.repset_drop('orders');
SELECT ha.repset_drop('orders');
SELECT ha.repset_drop('orders', if_exists => true);
SELECT ha.repset_drop('default');
SELECT ha.repset_drop(NULL);
-- a set that holds tables without a key cannot begin to send updates
CREATE TABLE heap (a int);
SELECT ha.repset_add_table('audit', 'heap');
SELECT ha.repset_alter('audit', replicate_update => true);
SELECT ha.repset_drop('audit');
SELECT count(*) FROM ha.replication_set_tables;
