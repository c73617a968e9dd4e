-- Partitioned tables in replication sets: the key that every partition needs, and what stands for itself.
CREATE EXTENSION pg_ha;
CREATE TABLE p (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2) PARTITION BY RANGE (id);
CREATE TABLE p2a PARTITION OF p2 FOR VALUES FROM (0) TO (10);
CREATE TABLE keyless (id int, k int) PARTITION BY LIST (k);
CREATE TABLE keyless_1 PARTITION OF keyless FOR VALUES IN (1);
ALTER TABLE keyless REPLICA IDENTITY FULL;
SELECT ha.repset_add_table('default', 'p', columns => '{id,v}');
SELECT ha.repset_add_table('default', 'p', row_filter => 'v IS NULL');
SELECT ha.repset_add_table('default', 'p', row_filter => 'k = 1', include_partitions => false);
SELECT ha.repset_add_table('default', 'p', columns => '{id,k}', include_partitions => false);
SELECT ha.repset_add_table('default', 'p', columns => '{id,k}', row_filter => 'k < 2');
SELECT ha.repset_add_table('default', 'p2a');
-- a partition has a replica identity of its own
SELECT ha.repset_add_table('default', 'keyless');
ALTER TABLE keyless_1 REPLICA IDENTITY FULL;
SELECT ha.repset_add_table('default', 'keyless');
SELECT ha.repset_add_table('default_insert_only', 'p2', include_partitions => false);
SELECT relation, columns, row_filter, include_partitions FROM ha.replication_set_tables ORDER BY relation::text;
ALTER TABLE keyless_1 REPLICA IDENTITY DEFAULT;
CREATE TABLE keyless_2 (id int, k int);
ALTER TABLE keyless ATTACH PARTITION keyless_2 FOR VALUES IN (2);
CREATE TABLE keyless_3 PARTITION OF keyless FOR VALUES IN (3);
DROP TABLE keyless_3;
SELECT ha.repset_remove_table('default', 'keyless');
-- by pattern: the root brings its partitions
SELECT ha.repset_create('all') > 0 AS made;
ALTER TABLE keyless_1 REPLICA IDENTITY NOTHING;
SELECT * FROM ha.repset_add_tables('all', '*');
