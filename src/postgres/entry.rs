//! The functions PostgreSQL calls by name: each one a thunk into safe code. Their SQL declarations are written
//! by hand in `sql/`, where argument names, comments and grants stand beside them.
