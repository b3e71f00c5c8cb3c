//! What stands between `{%` and `%}`.

use minijinja::machinery::ast::{Expr, ForLoop, IfCond, Spanned, Stmt};

use super::words::FUNCTIONS;
use super::{Done, Reader, at};

impl<'t> Reader<'t> {
    fn statements(&mut self, statements: &[Stmt<'t>]) -> Done {
        statements.iter().try_for_each(|statement| self.statement(statement))
    }

    pub(super) fn statement(&mut self, statement: &Stmt<'t>) -> Done {
        match statement {
            Stmt::Template(template) => self.statements(&template.children),
            Stmt::EmitExpr(emit) => self.expression(&emit.expr),
            Stmt::EmitRaw(_) => Ok(()),
            Stmt::ForLoop(each) => self.for_loop(each),
            Stmt::IfCond(condition) => self.condition(condition),
            Stmt::WithBlock(with) => {
                self.scopes.push(Vec::new());
                for (target, value) in &with.assignments {
                    self.bound(value)?;
                    self.declare(target)?;
                }
                self.statements(&with.body)?;
                self.scopes.pop();
                Ok(())
            }
            Stmt::Set(set) => {
                self.bound(&set.expr)?;
                self.declare(&set.target)
            }
            Stmt::SetBlock(set) => {
                self.statements(&set.body)?;
                set.filter.iter().try_for_each(|filter| self.bound(filter))?;
                self.declare(&set.target)
            }
            Stmt::FilterBlock(block) => {
                self.statements(&block.body)?;
                self.expression(&block.filter)
            }
            Stmt::AutoEscape(block) => Err(at(
                block.span(),
                "autoescape is not available; escape with a filter, such as tojson or quote",
            )),
            Stmt::Do(call) => self.call(&call.call),
        }
    }

    fn for_loop(&mut self, each: &Spanned<ForLoop<'t>>) -> Done {
        if each.recursive {
            return Err(at(each.span(), "a recursive loop is not available; write one loop inside another"));
        }
        self.bound(&each.iter)?;
        self.scopes.push(vec!["loop"]);
        self.declare(&each.target)?;
        self.unsure(|reader| {
            each.filter_expr.iter().try_for_each(|filter| reader.expression(filter))?;
            reader.statements(&each.body)
        })?;
        self.scopes.pop();
        self.unsure(|reader| reader.statements(&each.else_body))
    }

    fn condition(&mut self, condition: &Spanned<IfCond<'t>>) -> Done {
        self.expression(&condition.expr)?;
        self.unsure(|reader| {
            reader.statements(&condition.true_body)?;
            reader.statements(&condition.false_body)
        })
    }

    /// Reads what may be skipped at run time.
    pub(super) fn unsure(&mut self, read: impl FnOnce(&mut Self) -> Done) -> Done {
        let before = std::mem::replace(&mut self.sure, false);
        let done = read(self);
        self.sure = before;
        done
    }

    fn declare(&mut self, target: &Expr<'t>) -> Done {
        match target {
            Expr::Var(name) if FUNCTIONS.contains(&name.id) || name.id == "loop" => {
                Err(at(name.span(), format!("{} has a meaning already; choose another name", name.id)))
            }
            Expr::Var(name) => {
                self.scopes.last_mut().into_iter().for_each(|scope| scope.push(name.id));
                Ok(())
            }
            Expr::List(names) => names.items.iter().try_for_each(|name| self.declare(name)),
            Expr::Tuple(names) => names.items.iter().try_for_each(|name| self.declare(name)),
            Expr::Const(_)
            | Expr::Slice(_)
            | Expr::UnaryOp(_)
            | Expr::BinOp(_)
            | Expr::Compare(_)
            | Expr::IfExpr(_)
            | Expr::Filter(_)
            | Expr::Test(_)
            | Expr::GetAttr(_)
            | Expr::GetItem(_)
            | Expr::Call(_)
            | Expr::Map(_) => Err(at(target.span(), "only a name can be set; write {% set name = … %}")),
        }
    }
}
