//! The only home of `unsafe`, and of every C entry point and callback.

::pgrx::pg_module_magic!(name, version);

mod entry;
