//! The kinds of replication that are compared, and what each wants to hear.

use anyhow::{Result, bail};

use super::{DATABASE, MARKER};
use crate::instance::Instance;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Native,
    Pglogical,
    PgHa,
}

impl Kind {
    pub(super) const ALL: [Kind; 3] = [Kind::Native, Kind::Pglogical, Kind::PgHa];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Pglogical => "pglogical",
            Self::PgHa => "pg_ha",
        }
    }

    pub(super) fn named(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| anyhow::anyhow!("bench-peers knows native, pglogical and pg_ha, not {name:?}"))
    }

    /// What its servers need beyond what all have.
    pub(super) fn settings(self) -> &'static str {
        match self {
            Self::Native => "",
            Self::Pglogical => "shared_preload_libraries = 'pglogical'\n",
            Self::PgHa => "shared_preload_libraries = 'pg_ha'\n",
        }
    }

    /// Another plugin must be allowed by name, where the server has that setting.
    pub(super) fn output_plugin(self) -> Option<&'static str> {
        (self == Self::Pglogical).then_some("pglogical_output")
    }

    /// Makes a database one that can send or receive.
    pub(super) fn join(self, server: &Instance, database: &str) -> Result<()> {
        let dsn = server.dsn(database);
        let sql: &[String] = match self {
            Self::Native => &[],
            Self::Pglogical => &[
                "CREATE EXTENSION pglogical".to_owned(),
                format!("SELECT pglogical.create_node('{}', '{dsn}')", server.name),
            ],
            Self::PgHa => &[
                "CREATE EXTENSION pg_ha".to_owned(),
                format!("SELECT ha.node_create('{}', '{dsn}')", server.name),
            ],
        };
        sql.iter().try_for_each(|sql| server.sql(database, sql).map(drop))
    }

    /// Lets a provider send tables under the name of a publication or replication set.
    pub(super) fn publish(self, server: &Instance, database: &str, set: &str, tables: &str) -> Result<()> {
        match self {
            Self::Native => server.sql(
                database,
                &format!(
                    "DO $$ BEGIN EXECUTE (SELECT 'CREATE PUBLICATION {set} FOR TABLE ' || string_agg(t::text, ', ') \
                       FROM unnest({tables}) t); END $$"
                ),
            )?,
            Self::Pglogical => server.sql(
                database,
                &format!(
                    "SELECT pglogical.create_replication_set('{set}'); \
                     SELECT count(pglogical.replication_set_add_table('{set}', t)) FROM unnest({tables}) t"
                ),
            )?,
            Self::PgHa => server.sql(
                database,
                &format!(
                    "SELECT ha.repset_create('{set}'); \
                     SELECT count(ha.repset_add_table('{set}', t)) FROM unnest({tables}) t"
                ),
            )?,
        };
        Ok(())
    }

    /// Adds a table without a key to what `bench` subscriptions receive.
    pub(super) fn publish_inserts(self, server: &Instance, table: &str) -> Result<()> {
        let sql = match self {
            Self::Native => format!("ALTER PUBLICATION bench ADD TABLE {table}"),
            Self::Pglogical => {
                format!("SELECT pglogical.replication_set_add_table('default_insert_only', '{table}')")
            }
            Self::PgHa => format!("SELECT ha.repset_add_table('default_insert_only', '{table}')"),
        };
        server.sql(DATABASE, &sql).map(drop)
    }

    /// Subscribes to a set, without its rows; the tables are there.
    pub(super) fn subscribe(self, subscriber: &Instance, dsn: &str, set: &str) -> Result<()> {
        let sql = match self {
            Self::Native => {
                format!(
                    "CREATE SUBSCRIPTION bench CONNECTION '{dsn}' PUBLICATION {set} WITH (copy_data = false)"
                )
            }
            Self::Pglogical => format!(
                "SELECT pglogical.create_subscription('bench', '{dsn}', '{{{set},default_insert_only}}', \
                                                      synchronize_structure := false, synchronize_data := false)"
            ),
            Self::PgHa => format!("SELECT ha.sub_create('bench', '{dsn}', '{{{set},default_insert_only}}')"),
        };
        subscriber.sql(DATABASE, &sql).map(drop)
    }

    pub(super) fn enable(self, on: bool) -> &'static str {
        match (self, on) {
            (Self::Native, true) => "ALTER SUBSCRIPTION bench ENABLE",
            (Self::Native, false) => "ALTER SUBSCRIPTION bench DISABLE",
            (Self::Pglogical, true) => "SELECT pglogical.alter_subscription_enable('bench', true)",
            (Self::Pglogical, false) => "SELECT pglogical.alter_subscription_disable('bench', true)",
            (Self::PgHa, true) => "SELECT ha.sub_enable('bench')",
            (Self::PgHa, false) => "SELECT ha.sub_disable('bench')",
        }
    }

    /// The processes that work on a subscriber.
    pub(super) fn appliers(self) -> &'static str {
        match self {
            Self::Native => "SELECT pid FROM pg_stat_subscription WHERE pid IS NOT NULL",
            Self::Pglogical => "SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'pglogical apply%'",
            Self::PgHa => {
                "SELECT pid FROM pg_stat_activity WHERE backend_type IN ('pg_ha receiver', 'pg_ha applier')"
            }
        }
    }

    /// Subscribes an empty database with structure and rows. `native` means what its users do: the structure by
    /// pg_dump (the caller has done that), the rows by the subscription.
    pub(super) fn subscribe_with_rows(
        self,
        subscriber: &Instance,
        database: &str,
        dsn: &str,
        set: &str,
    ) -> Result<()> {
        let sql = match self {
            Self::Native => format!("CREATE SUBSCRIPTION bench CONNECTION '{dsn}' PUBLICATION {set}"),
            Self::Pglogical => format!(
                "SELECT pglogical.create_subscription('bench', '{dsn}', '{{{set}}}', \
                                                      synchronize_structure := true, synchronize_data := true)"
            ),
            Self::PgHa => format!(
                "SELECT ha.sub_create('bench', '{dsn}', '{{{set}}}', synchronize_structure => true, \
                                      synchronize_data => true)"
            ),
        };
        subscriber.sql(database, &sql).map(drop)
    }

    /// True once every table of the subscription is copied and replicates.
    pub(super) fn is_copied(self) -> &'static str {
        match self {
            Self::Native => "SELECT count(*) > 0 AND bool_and(srsubstate = 'r') FROM pg_subscription_rel",
            Self::Pglogical => {
                "SELECT bool_and(status = 'replicating') FROM pglogical.show_subscription_status('bench')"
            }
            Self::PgHa => {
                "SELECT status = 'replicating' AND copy_tables_done = copy_tables_total FROM ha.status_subscriptions"
            }
        }
    }

    /// Ends a subscription with everything of it on the provider.
    pub(super) fn leave(self, subscriber: &Instance, database: &str, provider: &Instance) -> Result<()> {
        let name = &subscriber.name;
        match self {
            Self::Native => {
                subscriber.sql(database, "DROP SUBSCRIPTION bench")?;
            }
            Self::Pglogical => {
                subscriber.sql(
                    database,
                    &format!(
                        "SELECT pglogical.drop_subscription('bench'); SELECT pglogical.drop_node('{name}')"
                    ),
                )?;
            }
            Self::PgHa => {
                subscriber.sql(database, "SELECT ha.sub_drop('bench')")?;
                subscriber.sql(database, &format!("SELECT ha.node_drop('{name}')"))?;
                provider.sql(DATABASE, &format!("SELECT ha.node_drop('{name}')"))?;
            }
        }
        Ok(())
    }
}

/// The tables of the pair that drains backlogs, as an array of regclass.
pub(super) fn stream_tables() -> String {
    format!(
        "ARRAY['pgbench_accounts', 'pgbench_branches', 'pgbench_tellers', 'bench_inserts', 'bench_updates', \
               'bench_big', 'bench_latency', '{MARKER}']::regclass[]"
    )
}

/// Which kinds take part.
pub(super) fn chosen(only: Option<&str>, major: u16) -> Result<Vec<Kind>> {
    if let Some(names) = only {
        return names.split(',').map(Kind::named).collect();
    }
    let mut kinds = Kind::ALL.to_vec();
    if major != 15 {
        // Debian 12 has pglogical for its own release of the server.
        kinds.retain(|kind| *kind != Kind::Pglogical);
    }
    if kinds.is_empty() {
        bail!("nobody to compare");
    }
    Ok(kinds)
}
