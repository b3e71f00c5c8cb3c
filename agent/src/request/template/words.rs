//! The words a template may use, and what is known of a value from the words alone.

use minijinja::machinery::Span;
use minijinja::machinery::ast::{BinOpKind, Expr};

use super::{Problem, at, suggest};

/// The filters there are: of the engine's own those that neither call by name nor compare, and ours.
pub(super) const FILTERS: [&str; 30] = [
    "abs",
    "b64decode",
    "b64encode",
    "bool",
    "capitalize",
    "count",
    "d",
    "default",
    "first",
    "float",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "lines",
    "list",
    "lower",
    "quote",
    "replace",
    "reverse",
    "round",
    "split",
    "string",
    "title",
    "tojson",
    "trim",
    "upper",
    "urlencode",
];
/// Those whose result is one text or number.
const SCALAR_FILTERS: [&str; 21] = [
    "abs",
    "b64decode",
    "b64encode",
    "bool",
    "capitalize",
    "count",
    "float",
    "indent",
    "int",
    "join",
    "length",
    "lower",
    "quote",
    "replace",
    "round",
    "string",
    "title",
    "tojson",
    "trim",
    "upper",
    "urlencode",
];
/// What of a loop is one number or boolean.
const LOOP_COUNTERS: [&str; 7] = ["index", "index0", "revindex", "revindex0", "first", "last", "length"];
/// The tests there are.
pub(super) const TESTS: [&str; 17] = [
    "boolean",
    "defined",
    "divisibleby",
    "endingwith",
    "even",
    "false",
    "float",
    "integer",
    "iterable",
    "mapping",
    "none",
    "number",
    "odd",
    "sequence",
    "startingwith",
    "string",
    "true",
];
pub(super) const UNDEFINED_TEST: &str = "undefined";
pub(super) const COMPARISON: &str = "a comparison needs a text or number on one side, and on the left of in; write it out, or write value|string";
/// The functions there are.
pub(super) const FUNCTIONS: [&str; 2] = ["secret", "range"];

/// Whether an expression can only be one text, number, boolean or none, or else an error.
pub(super) fn is_scalar(expression: &Expr<'_>) -> bool {
    match expression {
        Expr::Const(_) | Expr::UnaryOp(_) | Expr::Compare(_) | Expr::Test(_) => true,
        Expr::BinOp(operation) => match operation.op {
            BinOpKind::ScAnd | BinOpKind::ScOr => is_scalar(&operation.left) && is_scalar(&operation.right),
            // Sums and products of lists are refused where they stand.
            BinOpKind::Add
            | BinOpKind::Mul
            | BinOpKind::Eq
            | BinOpKind::Ne
            | BinOpKind::Lt
            | BinOpKind::Lte
            | BinOpKind::Gt
            | BinOpKind::Gte
            | BinOpKind::In
            | BinOpKind::Sub
            | BinOpKind::Div
            | BinOpKind::FloorDiv
            | BinOpKind::Rem
            | BinOpKind::Pow
            | BinOpKind::Concat => true,
        },
        Expr::IfExpr(choice) => {
            is_scalar(&choice.true_expr) && choice.false_expr.as_ref().is_none_or(is_scalar)
        }
        Expr::Filter(filter) => SCALAR_FILTERS.contains(&filter.name),
        Expr::GetAttr(lookup) => {
            matches!(&lookup.expr, Expr::Var(name) if name.id == "loop")
                && LOOP_COUNTERS.contains(&lookup.name)
        }
        Expr::Slice(slice) => is_scalar(&slice.expr),
        Expr::Var(_) | Expr::GetItem(_) | Expr::Call(_) | Expr::List(_) | Expr::Tuple(_) | Expr::Map(_) => {
            false
        }
    }
}

pub(super) fn unknown<const N: usize>(what: &str, name: &str, span: Span, known: [&str; N]) -> Problem {
    let hint = match suggest::nearest(name, known) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("known: {}", known.join(", ")),
    };
    at(span, format!("unknown {what} {name}; {hint}"))
}
