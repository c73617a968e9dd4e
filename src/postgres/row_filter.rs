//! Row filters: boolean expressions over the columns of one table.
//!
//! A filter is kept as text and parsed against the table at hand, by its columns' names: a partition may have them in
//! another order than the root whose filter it follows. What may stand in it is what PostgreSQL allows in the WHERE
//! of a publication: columns, constants, built-in types, operators and collations, and immutable built-in functions.
//! So it means the same to whoever evaluates it, and needs no catalog that decoding cannot read.

use std::ffi::{CStr, CString, c_void};

use pgrx::pg_sys::{self, errcodes::PgSqlErrorCode as Code};
use pgrx::prelude::*;

use super::error::{Answer, Report, explaining};
use super::{server, values, version};

/// The change that a filter is asked about, as an index.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Insert,
    Update,
    Delete,
}

/// What becomes of a change.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Drop,
    Send,
    /// An update that brings a row into the filter.
    SendAsInsert,
    /// An update that takes a row out of it.
    SendAsDelete,
}

/// The filters of one table, ready to be asked.
pub(crate) struct RowFilter {
    /// Holds everything below; deleted with the filter.
    memory: pg_sys::MemoryContext,
    slot: *mut pg_sys::TupleTableSlot,
    context: *mut pg_sys::ExprContext,
    conditions: Vec<*mut pg_sys::ExprState>,
    /// Per action the conditions of which one must hold; None: every row passes.
    wanted: [Option<Vec<usize>>; 3],
}

impl Drop for RowFilter {
    fn drop(&mut self) {
        // SAFETY: the context was made for this filter alone, below one that is never deleted.
        unsafe { pg_sys::MemoryContextDelete(self.memory) };
    }
}

impl RowFilter {
    /// Prepares filters for a table. Per action (insert, update, delete) one of the given texts must hold; None: every
    /// row passes. What cannot be parsed ends the statement with an ERROR.
    ///
    /// # Safety
    /// `relation` is open, in a transaction.
    pub(crate) unsafe fn prepare(
        relation: pg_sys::Relation,
        texts: [Option<Vec<CString>>; 3],
    ) -> Option<RowFilter> {
        if texts.iter().all(Option::is_none) {
            return None;
        }
        // SAFETY: everything that lasts is allocated in the filter's own memory, which its destructor deletes.
        unsafe {
            let mut filter = RowFilter {
                memory: pg_sys::AllocSetContextCreateInternal(
                    pg_sys::TopMemoryContext,
                    c"pg_ha row filter".as_ptr(),
                    pg_sys::ALLOCSET_SMALL_MINSIZE as usize,
                    pg_sys::ALLOCSET_SMALL_INITSIZE as usize,
                    pg_sys::ALLOCSET_SMALL_MAXSIZE as usize,
                ),
                slot: core::ptr::null_mut(),
                context: core::ptr::null_mut(),
                conditions: Vec::new(),
                wanted: [None, None, None],
            };
            let mut known: Vec<CString> = Vec::new();
            for (place, texts) in texts.into_iter().enumerate() {
                filter.wanted[place] = texts.map(|texts| {
                    let place_of = |text| {
                        known.iter().position(|other| *other == text).unwrap_or_else(|| {
                            known.push(text);
                            known.len() - 1
                        })
                    };
                    texts.into_iter().map(place_of).collect()
                });
            }
            for text in &known {
                let expression = server::with_fixed_search_path(|| parse(relation, text)).expression;
                let previous = pg_sys::MemoryContextSwitchTo(filter.memory);
                let own = pg_sys::copyObjectImpl(expression.cast()).cast();
                let planned = pg_sys::expression_planner(own);
                filter
                    .conditions
                    .push(pg_sys::ExecInitExpr(planned, core::ptr::null_mut()));
                pg_sys::MemoryContextSwitchTo(previous);
            }
            let previous = pg_sys::MemoryContextSwitchTo(filter.memory);
            let desc = pg_sys::CreateTupleDescCopy((*relation).rd_att);
            filter.slot = pg_sys::MakeSingleTupleTableSlot(desc, &raw const pg_sys::TTSOpsVirtual);
            filter.context = pg_sys::CreateStandaloneExprContext();
            (*filter.context).ecxt_scantuple = filter.slot;
            pg_sys::MemoryContextSwitchTo(previous);
            Some(filter)
        }
    }

    /// Judges a change. An update without an old row left the columns of the key alone, and with them all that the
    /// filter looks at.
    ///
    /// # Safety
    /// The rows belong to the table and have the descriptor `desc`; what evaluation allocates stays in the current
    /// memory context.
    pub(crate) unsafe fn judge(
        &self,
        action: Action,
        desc: pg_sys::TupleDesc,
        old: pg_sys::HeapTuple,
        new: pg_sys::HeapTuple,
    ) -> Verdict {
        let Some(conditions) = &self.wanted[action as usize] else {
            return Verdict::Send;
        };
        let send = |passes| if passes { Verdict::Send } else { Verdict::Drop };
        let none = core::ptr::null_mut();
        // SAFETY: the caller's promise.
        unsafe {
            match action {
                Action::Insert => send(self.passes(conditions, desc, new, none)),
                Action::Delete => send(!old.is_null() && self.passes(conditions, desc, old, none)),
                Action::Update if old.is_null() => send(self.passes(conditions, desc, new, none)),
                Action::Update => match (
                    self.passes(conditions, desc, old, none),
                    self.passes(conditions, desc, new, old),
                ) {
                    (true, true) => Verdict::Send,
                    (true, false) => Verdict::SendAsDelete,
                    (false, true) => Verdict::SendAsInsert,
                    (false, false) => Verdict::Drop,
                },
            }
        }
    }

    /// Whether one of the conditions holds for a row; out-of-line values that an update left alone are taken from the
    /// old row.
    ///
    /// # Safety
    /// As [`Self::judge`].
    unsafe fn passes(
        &self,
        conditions: &[usize],
        desc: pg_sys::TupleDesc,
        row: pg_sys::HeapTuple,
        old: pg_sys::HeapTuple,
    ) -> bool {
        // SAFETY: the slot has the same columns as the descriptor: the filter is made anew when the table changes.
        unsafe {
            let slot = self.slot;
            pg_sys::ExecClearTuple(slot);
            pg_sys::heap_deform_tuple(row, desc, (*slot).tts_values, (*slot).tts_isnull);
            if !old.is_null() {
                values::complete_from(desc, (*slot).tts_values, (*slot).tts_isnull, old);
            }
            pg_sys::ExecStoreVirtualTuple(slot);
            conditions.iter().any(|place| {
                let mut null = false;
                let value = pg_sys::ExecEvalExpr(self.conditions[*place], self.context, &mut null);
                !null && value.value() as u8 != 0
            })
        }
    }
}

/// Checks a filter for a table that exists, and tells which of its columns it looks at.
pub(crate) fn check(relation: pg_sys::Oid, text: &str) -> Answer<Vec<String>> {
    const HINT: &str =
        "Write a condition on the table's own columns, as after WHERE: 'region = ''eu'' AND amount > 0'.";
    let invalid = |code, detail: String| {
        Report::new(code, format!("invalid row_filter \"{text}\""))
            .detail(detail)
            .hint(HINT)
    };
    let Ok(source) = CString::new(text) else {
        return Err(invalid(
            Code::ERRCODE_INVALID_PARAMETER_VALUE,
            "It has a zero byte in it.".to_owned(),
        ));
    };
    if text.trim().is_empty() {
        return Err(invalid(
            Code::ERRCODE_INVALID_PARAMETER_VALUE,
            "It is empty.".to_owned(),
        ));
    }
    // SAFETY: the relation is opened and closed here; it exists, or this raises.
    explaining(invalid, || unsafe {
        let relation = pg_sys::relation_open(relation, pg_sys::AccessShareLock as i32);
        let parsed = parse(relation, &source);
        let columns = parsed
            .columns
            .iter()
            .map(|index| {
                let attribute = version::attribute((*relation).rd_att, *index);
                values::identifier(attribute.attname.data.as_ptr())
            })
            .collect();
        pg_sys::relation_close(relation, pg_sys::NoLock as i32);
        columns
    })
}

struct Parsed {
    expression: *mut pg_sys::Node,
    /// Places of the columns that occur in it, from 0.
    columns: Vec<usize>,
}

/// What the parser's hook knows.
struct Names {
    desc: pg_sys::TupleDesc,
    columns: Vec<usize>,
}

fn wrong(code: Code, message: impl Into<String>) -> ! {
    Report::new(code, message).raise()
}

/// # Safety
/// `relation` is open, in a transaction; the result is allocated in the current memory context.
unsafe fn parse(relation: pg_sys::Relation, text: &CStr) -> Parsed {
    // SAFETY: the server's own parser; the nodes it returns have the types that its grammar gives them.
    unsafe {
        let statements = pg_sys::raw_parser(text.as_ptr(), pg_sys::RawParseMode::RAW_PARSE_PLPGSQL_EXPR);
        let Some(condition) = sole_expression(statements) else {
            wrong(Code::ERRCODE_SYNTAX_ERROR, "it is not one single condition");
        };
        let mut names = Names {
            desc: (*relation).rd_att,
            columns: Vec::new(),
        };
        let state = pg_sys::make_parsestate(core::ptr::null_mut());
        (*state).p_sourcetext = text.as_ptr();
        (*state).p_pre_columnref_hook = Some(column);
        (*state).p_ref_hook_state = (&raw mut names).cast();
        let condition = pg_sys::transformExpr(state, condition, pg_sys::ParseExprKind::EXPR_KIND_WHERE);
        let condition = pg_sys::coerce_to_boolean(state, condition, c"row_filter".as_ptr());
        pg_sys::assign_expr_collations(state, condition);
        let has_query = (*state).p_hasSubLinks;
        pg_sys::free_parsestate(state);
        if has_query {
            wrong(Code::ERRCODE_FEATURE_NOT_SUPPORTED, "it contains a subquery");
        }
        let mut problem: Option<&'static str> = None;
        simple(condition, (&raw mut problem).cast());
        if let Some(problem) = problem {
            wrong(Code::ERRCODE_FEATURE_NOT_SUPPORTED, problem);
        }
        Parsed {
            expression: condition,
            columns: names.columns,
        }
    }
}

/// The one expression that was written, if nothing else was.
///
/// # Safety
/// `statements` is what the raw parser returned.
unsafe fn sole_expression(statements: *mut pg_sys::List) -> Option<*mut pg_sys::Node> {
    // SAFETY: the node types are checked before the nodes are looked into.
    unsafe {
        if statements.is_null() || (*statements).length != 1 {
            return None;
        }
        let raw: *mut pg_sys::RawStmt = pg_sys::list_nth(statements, 0).cast();
        let select: *mut pg_sys::SelectStmt = (*raw).stmt.cast();
        if select.is_null() || (*select).type_ != pg_sys::NodeTag::T_SelectStmt {
            return None;
        }
        let select = &*select;
        let others = [
            select.distinctClause,
            select.fromClause,
            select.groupClause,
            select.windowClause,
            select.valuesLists,
            select.sortClause,
            select.lockingClause,
        ];
        let nodes = [
            select.whereClause,
            select.havingClause,
            select.limitOffset,
            select.limitCount,
        ];
        if select.op != pg_sys::SetOperation::SETOP_NONE
            || !select.withClause.is_null()
            || !select.intoClause.is_null()
            || others.iter().any(|list| !list.is_null())
            || nodes.iter().any(|node| !node.is_null())
            || select.targetList.is_null()
            || (*select.targetList).length != 1
        {
            return None;
        }
        let target: *mut pg_sys::ResTarget = pg_sys::list_nth(select.targetList, 0).cast();
        ((*target).name.is_null() && (*target).indirection.is_null()).then_some((*target).val)
    }
}

/// Resolves a column's name.
#[pg_guard]
unsafe extern "C-unwind" fn column(
    state: *mut pg_sys::ParseState,
    reference: *mut pg_sys::ColumnRef,
) -> *mut pg_sys::Node {
    // SAFETY: the hook's state is the one that `parse` set; fields are String nodes or a star.
    unsafe {
        let names = &mut *(*state).p_ref_hook_state.cast::<Names>();
        let fields = (*reference).fields;
        let count = (*fields).length;
        let text = |place| {
            let field: *mut pg_sys::Node = pg_sys::list_nth(fields, place).cast();
            ((*field).type_ == pg_sys::NodeTag::T_String)
                .then(|| (*field.cast::<pg_sys::String>()).sval.cast_const())
        };
        // A partition has another name than the table above it: columns are named alone.
        let (true, Some(name)) = (count == 1, text(0)) else {
            wrong(
                Code::ERRCODE_INVALID_COLUMN_REFERENCE,
                "columns must be named alone, without a table and one by one",
            );
        };
        let name = CStr::from_ptr(name);
        let shown = values::identifier(name.as_ptr());
        for index in 0..(*names.desc).natts as usize {
            let attribute = version::attribute(names.desc, index);
            if attribute.attisdropped || CStr::from_ptr(attribute.attname.data.as_ptr()) != name {
                continue;
            }
            if attribute.attgenerated != 0 {
                wrong(
                    Code::ERRCODE_FEATURE_NOT_SUPPORTED,
                    format!("column \"{shown}\" is generated"),
                );
            }
            if !names.columns.contains(&index) {
                names.columns.push(index);
            }
            let var = pg_sys::makeVar(
                1,
                attribute.attnum,
                attribute.atttypid,
                attribute.atttypmod,
                attribute.attcollation,
                0,
            );
            (*var).location = (*reference).location;
            return var.cast();
        }
        if !pg_sys::SystemAttributeByName(name.as_ptr()).is_null() {
            wrong(
                Code::ERRCODE_INVALID_COLUMN_REFERENCE,
                format!("\"{shown}\" is a system column"),
            );
        }
        wrong(
            Code::ERRCODE_UNDEFINED_COLUMN,
            format!("column \"{shown}\" does not exist"),
        );
    }
}

/// Looks for what a filter may not contain, as check_simple_rowfilter_expr of PostgreSQL does; `problem` points to an
/// Option of what is wrong.
#[pg_guard]
unsafe extern "C-unwind" fn simple(node: *mut pg_sys::Node, problem: *mut c_void) -> bool {
    use pg_sys::NodeTag as Tag;
    if node.is_null() {
        return false;
    }
    let user_defined = |oid: pg_sys::Oid| oid.to_u32() >= pg_sys::FirstNormalObjectId;
    // SAFETY: a node of an analysed expression.
    unsafe {
        let operator = match (*node).type_ {
            Tag::T_OpExpr | Tag::T_DistinctExpr | Tag::T_NullIfExpr => {
                Some((*node.cast::<pg_sys::OpExpr>()).opno)
            }
            Tag::T_ScalarArrayOpExpr => Some((*node.cast::<pg_sys::ScalarArrayOpExpr>()).opno),
            _ => None,
        };
        let found = match (*node).type_ {
            Tag::T_List => None,
            _ if operator.is_some_and(user_defined) => Some("it uses a user-defined operator"),
            Tag::T_Var
            | Tag::T_Const
            | Tag::T_FuncExpr
            | Tag::T_OpExpr
            | Tag::T_DistinctExpr
            | Tag::T_NullIfExpr
            | Tag::T_ScalarArrayOpExpr
            | Tag::T_BoolExpr
            | Tag::T_RelabelType
            | Tag::T_CollateExpr
            | Tag::T_CaseExpr
            | Tag::T_CaseTestExpr
            | Tag::T_ArrayExpr
            | Tag::T_RowExpr
            | Tag::T_CoalesceExpr
            | Tag::T_MinMaxExpr
            | Tag::T_XmlExpr
            | Tag::T_NullTest
            | Tag::T_BooleanTest => {
                if user_defined(pg_sys::exprType(node)) {
                    Some("it uses a user-defined type")
                } else if pg_sys::check_functions_in_node(
                    node,
                    Some(unstable_function),
                    core::ptr::null_mut(),
                ) {
                    Some("it uses a function that is user-defined or not immutable")
                } else if user_defined(pg_sys::exprCollation(node))
                    || user_defined(pg_sys::exprInputCollation(node))
                {
                    Some("it uses a user-defined collation")
                } else {
                    None
                }
            }
            _ => Some("it uses more than columns, constants, operators and immutable built-in functions"),
        };
        if found.is_some() {
            *problem.cast::<Option<&'static str>>() = found;
            return true;
        }
        pg_sys::expression_tree_walker(node, Some(simple), problem)
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn unstable_function(function: pg_sys::Oid, _context: *mut c_void) -> bool {
    // SAFETY: a look-up of an existing function.
    unsafe {
        function.to_u32() >= pg_sys::FirstNormalObjectId
            || pg_sys::func_volatile(function) as u8 != pg_sys::PROVOLATILE_IMMUTABLE
    }
}
