//! What has a value.

use minijinja::machinery::Span;
use minijinja::machinery::ast::{BinOp, BinOpKind, Call, CallArg, CompareOpKind, Expr, Spanned};

use super::words::{COMPARISON, FILTERS, FUNCTIONS, TESTS, UNDEFINED_TEST, is_scalar, unknown};
use super::{Done, Reader, Reference, at};

impl<'t> Reader<'t> {
    /// An expression whose value gets a name. It may not be a list made from variables: those can be made to nest
    /// without end, a name at a time.
    pub(super) fn bound(&mut self, expression: &Expr<'t>) -> Done {
        self.binding = true;
        let done = self.expression(expression);
        self.binding = false;
        done
    }

    /// The items of a list or map that is written out.
    fn items<'e>(&mut self, items: impl IntoIterator<Item = &'e Expr<'t>>) -> Done
    where
        't: 'e,
    {
        let before = std::mem::replace(&mut self.in_literal, true);
        let done = items.into_iter().try_for_each(|item| self.expression(item));
        self.in_literal = before;
        done
    }

    pub(super) fn expression(&mut self, expression: &Expr<'t>) -> Done {
        match expression {
            Expr::Var(name) => self.variable(name.id, name.span()),
            Expr::Const(_) => Ok(()),
            Expr::Slice(slice) => {
                if self.binding && !is_scalar(&slice.expr) {
                    return Err(at(
                        slice.span(),
                        "a part of a list cannot get a name; for a part of a text write (value|string)[…]",
                    ));
                }
                self.expression(&slice.expr)?;
                [&slice.start, &slice.stop, &slice.step]
                    .into_iter()
                    .flatten()
                    .try_for_each(|part| self.expression(part))
            }
            Expr::UnaryOp(operation) => self.expression(&operation.expr),
            Expr::BinOp(operation) => self.operation(operation),
            Expr::Compare(comparison) => {
                let mut left = &comparison.expr;
                self.expression(left)?;
                for (place, next) in comparison.ops.iter().enumerate() {
                    let sound = match next.op {
                        CompareOpKind::In | CompareOpKind::NotIn => is_scalar(left),
                        CompareOpKind::Eq
                        | CompareOpKind::Ne
                        | CompareOpKind::Lt
                        | CompareOpKind::Lte
                        | CompareOpKind::Gt
                        | CompareOpKind::Gte => is_scalar(left) || is_scalar(&next.expr),
                    };
                    if !sound {
                        return Err(at(comparison.span(), COMPARISON));
                    }
                    // A chain ends at the first comparison that fails.
                    if place == 0 {
                        self.expression(&next.expr)?;
                    } else {
                        self.unsure(|reader| reader.expression(&next.expr))?;
                    }
                    left = &next.expr;
                }
                Ok(())
            }
            Expr::IfExpr(choice) => {
                self.expression(&choice.test_expr)?;
                self.unsure(|reader| {
                    reader.expression(&choice.true_expr)?;
                    choice.false_expr.iter().try_for_each(|other| reader.expression(other))
                })
            }
            Expr::Filter(filter) => {
                if !FILTERS.contains(&filter.name) {
                    return Err(unknown("filter", filter.name, filter.span(), FILTERS));
                }
                filter.expr.iter().try_for_each(|value| self.expression(value))?;
                self.arguments(&filter.args)
            }
            Expr::Test(test) => {
                if !TESTS.contains(&test.name) && test.name != UNDEFINED_TEST {
                    return Err(unknown("test", test.name, test.span(), TESTS));
                }
                self.expression(&test.expr)?;
                self.arguments(&test.args)
            }
            Expr::GetAttr(lookup) => self.expression(&lookup.expr),
            Expr::GetItem(lookup) => {
                self.expression(&lookup.expr)?;
                self.expression(&lookup.subscript_expr)
            }
            Expr::Call(call) => self.call(call),
            Expr::List(list) => self.items(&list.items),
            Expr::Tuple(tuple) => self.items(&tuple.items),
            Expr::Map(map) => self.items(map.keys.iter().chain(&map.values)),
        }
    }

    fn operation(&mut self, operation: &Spanned<BinOp<'t>>) -> Done {
        use BinOpKind::{
            Add, Concat, Div, Eq, FloorDiv, Gt, Gte, In, Lt, Lte, Mul, Ne, Pow, Rem, ScAnd, ScOr, Sub,
        };

        let (left, right) = (&operation.left, &operation.right);
        let problem = match operation.op {
            Add if !is_scalar(left) && !is_scalar(right) => Some(
                "+ needs a text or number on one side; write ~ between texts, and value|int for a number",
            ),
            Mul if !is_scalar(left) || !is_scalar(right) => {
                Some("* needs numbers on both sides; write value|int")
            }
            Eq | Ne | Lt | Lte | Gt | Gte if !is_scalar(left) && !is_scalar(right) => Some(COMPARISON),
            In if !is_scalar(left) => Some(COMPARISON),
            Add | Mul | Eq | Ne | Lt | Lte | Gt | Gte | In | Sub | Div | FloorDiv | Rem | Pow | Concat
            | ScAnd | ScOr => None,
        };
        if let Some(problem) = problem {
            return Err(at(operation.span(), problem));
        }
        self.expression(left)?;
        match operation.op {
            ScAnd | ScOr => self.unsure(|reader| reader.expression(right)),
            Add | Mul | Eq | Ne | Lt | Lte | Gt | Gte | In | Sub | Div | FloorDiv | Rem | Pow | Concat => {
                self.expression(right)
            }
        }
    }

    fn variable(&self, name: &str, span: Span) -> Done {
        if self.scopes.iter().flatten().any(|known| *known == name) {
            if self.binding && self.in_literal {
                let problem = format!(
                    "a list or map with variable {name} in it cannot get a name; use it where it is written"
                );
                return Err(at(span, problem));
            }
            return Ok(());
        }
        if FUNCTIONS.contains(&name) {
            return Err(at(span, format!("{name} is a function; write {name}(…)")));
        }
        Err(at(span, format!("unknown variable {name}; write secret(\"<store>:<path>\") for a secret")))
    }

    fn arguments(&mut self, arguments: &[CallArg<'t>]) -> Done {
        arguments.iter().try_for_each(|argument| match argument {
            CallArg::Pos(value)
            | CallArg::Kwarg(_, value)
            | CallArg::PosSplat(value)
            | CallArg::KwargSplat(value) => self.expression(value),
        })
    }

    pub(super) fn call(&mut self, call: &Spanned<Call<'t>>) -> Done {
        match &call.expr {
            Expr::Var(name) if name.id == "secret" => self.secret(call),
            Expr::Var(name) if name.id == "range" => self.arguments(&call.args),
            Expr::Var(name) => Err(unknown("function", name.id, call.span(), FUNCTIONS)),
            Expr::GetAttr(method) => {
                let problem =
                    format!("there is no method {}(); use a filter, such as value|upper", method.name);
                Err(at(call.span(), problem))
            }
            Expr::Const(_)
            | Expr::Slice(_)
            | Expr::UnaryOp(_)
            | Expr::BinOp(_)
            | Expr::Compare(_)
            | Expr::IfExpr(_)
            | Expr::Filter(_)
            | Expr::Test(_)
            | Expr::GetItem(_)
            | Expr::Call(_)
            | Expr::List(_)
            | Expr::Tuple(_)
            | Expr::Map(_) => Err(at(call.span(), "only functions can be called: secret(…) and range(…)")),
        }
    }

    fn secret(&mut self, call: &Spanned<Call<'t>>) -> Done {
        let text = match call.args.as_slice() {
            [CallArg::Pos(Expr::Const(text))] => text.value.as_str(),
            [] => {
                let problem = "secret() names no reference; write secret(\"<store>:<path>\") or secret(\"<store>:<path>#<field>\")";
                return Err(at(call.span(), problem));
            }
            [_] => None,
            _ => return Err(at(call.span(), "secret() takes one reference; call it once for each")),
        };
        let Some(text) = text else {
            let problem = "secret() takes a reference written out in quotes, not a variable or an expression; choose between references with {% if %}";
            return Err(at(call.span(), problem));
        };
        let reference = Reference::parse(text, self.stores)
            .map_err(|problem| at(call.span(), format!("secret(…): {problem}")))?;
        if reference.mode.is_some() {
            return Err(at(
                call.span(),
                "secret(…): option mode has no meaning inside a template; leave it out",
            ));
        }
        if self.sure && !self.references.contains(&reference) {
            self.references.push(reference.clone());
        }
        self.calls.insert(text.to_owned(), reference);
        Ok(())
    }
}
