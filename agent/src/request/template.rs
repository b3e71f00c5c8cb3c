//! What a template may be, found out before anything is fetched for it.
//!
//! The engine finds an unknown filter or variable only when it comes by; a pod should not learn of it at the first
//! rotation. So the template's syntax tree is read once: every name in it has to be known, and every `secret("…")`
//! has to be written out. A reference put together from values is refused for a second reason: a secret would flow
//! into store requests and messages.

use std::collections::BTreeMap;

use minijinja::machinery::ast::{Call, CallArg, Expr, ForLoop, IfCond, Spanned, Stmt};
use minijinja::machinery::{self, Span, Token};
use minijinja::syntax::SyntaxConfig;

use super::{Problem, Reference, StoreNames, Template, suggest};

/// The filters there are: the engine's own that neither call by name nor guess, and ours.
pub(crate) const FILTERS: [&str; 36] = [
    "abs",
    "b64decode",
    "b64encode",
    "bool",
    "capitalize",
    "count",
    "d",
    "default",
    "dictsort",
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
    "max",
    "min",
    "quote",
    "replace",
    "reverse",
    "round",
    "sort",
    "split",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "unique",
    "upper",
    "urlencode",
];
/// The tests there are.
const TESTS: [&str; 24] = [
    "boolean",
    "defined",
    "divisibleby",
    "endingwith",
    "eq",
    "even",
    "false",
    "float",
    "ge",
    "gt",
    "in",
    "integer",
    "iterable",
    "le",
    "lt",
    "mapping",
    "ne",
    "none",
    "number",
    "odd",
    "sequence",
    "startingwith",
    "string",
    "true",
];
const UNDEFINED_TEST: &str = "undefined";
/// The most words and signs between `{{` and `}}`, or `{%` and `%}`.
const MAX_TAG_WORDS: usize = 400;
/// The most `elif` in a template.
const MAX_BRANCHES: usize = 100;
const FUNCTIONS: [&str; 2] = ["secret", "range"];

impl Template {
    /// Reads a template whose references may name `stores`.
    ///
    /// The error names the line and what stands there; there is no secret yet that it could show.
    pub fn parse(source: &str, stores: &StoreNames) -> Result<Self, Problem> {
        bounded(source)?;
        let tree = machinery::parse(source, "template", SyntaxConfig::default()).map_err(|error| {
            let line = error.line().unwrap_or(1);
            Problem::new(format!("line {line}: {}", error.detail().unwrap_or("the template does not parse")))
        })?;
        let mut reader = Reader {
            stores,
            scopes: vec![Vec::new()],
            calls: BTreeMap::new(),
            references: Vec::new(),
            sure: true,
        };
        reader.statement(&tree)?;
        let Reader { calls, references, .. } = reader;
        Ok(Self { source: source.to_owned(), references, calls })
    }
}

/// Refuses what would make the tree deeper than a thread's stack: the parser bounds how deep brackets and blocks
/// nest, but not how long a chain of operators or of `elif` is, and each link is one level of the tree.
fn bounded(source: &str) -> Done {
    let (mut words, mut branches) = (0, 0);
    // What cannot be split into words is the parser's to complain about.
    for (token, span) in machinery::tokenize(source, false, SyntaxConfig::default()).map_while(Result::ok) {
        match token {
            Token::TemplateData(_) | Token::VariableStart | Token::BlockStart => words = 0,
            Token::Ident("elif") => branches += 1,
            _ => words += 1,
        }
        if words > MAX_TAG_WORDS {
            let problem =
                format!("a tag has more than {MAX_TAG_WORDS} words and signs; split it into several");
            return Err(at(span, problem));
        }
        if branches > MAX_BRANCHES {
            let problem = format!("the template has more than {MAX_BRANCHES} elif; write several templates");
            return Err(at(span, problem));
        }
    }
    Ok(())
}

/// Walks the tree in the order of execution.
struct Reader<'t> {
    stores: &'t StoreNames,
    /// The variables in sight, innermost scope last.
    scopes: Vec<Vec<&'t str>>,
    calls: BTreeMap<String, Reference>,
    references: Vec<Reference>,
    /// Whether what is read now runs at every rendering.
    sure: bool,
}

type Done = Result<(), Problem>;

fn at(span: Span, problem: impl std::fmt::Display) -> Problem {
    Problem::new(format!("line {}: {problem}", span.start_line))
}

impl<'t> Reader<'t> {
    fn statements(&mut self, statements: &[Stmt<'t>]) -> Done {
        statements.iter().try_for_each(|statement| self.statement(statement))
    }

    fn statement(&mut self, statement: &Stmt<'t>) -> Done {
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
                set.filter.iter().try_for_each(|filter| self.expression(filter))?;
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
    fn unsure(&mut self, read: impl FnOnce(&mut Self) -> Done) -> Done {
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

    /// An expression whose value gets a name.
    fn bound(&mut self, expression: &Expr<'t>) -> Done {
        self.expression(expression)
    }

    fn expression(&mut self, expression: &Expr<'t>) -> Done {
        match expression {
            Expr::Var(name) => self.variable(name.id, name.span()),
            Expr::Const(_) => Ok(()),
            Expr::Slice(slice) => {
                self.expression(&slice.expr)?;
                [&slice.start, &slice.stop, &slice.step]
                    .into_iter()
                    .flatten()
                    .try_for_each(|part| self.expression(part))
            }
            Expr::UnaryOp(operation) => self.expression(&operation.expr),
            Expr::BinOp(operation) => {
                use minijinja::machinery::ast::BinOpKind::{ScAnd, ScOr};
                self.expression(&operation.left)?;
                if matches!(operation.op, ScAnd | ScOr) {
                    self.unsure(|reader| reader.expression(&operation.right))
                } else {
                    self.expression(&operation.right)
                }
            }
            Expr::Compare(comparison) => {
                self.expression(&comparison.expr)?;
                // A chain ends at the first comparison that fails.
                let mut operands = comparison.ops.iter();
                operands.next().into_iter().try_for_each(|first| self.expression(&first.expr))?;
                self.unsure(|reader| operands.try_for_each(|next| reader.expression(&next.expr)))
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
            Expr::List(list) => list.items.iter().try_for_each(|item| self.expression(item)),
            Expr::Tuple(tuple) => tuple.items.iter().try_for_each(|item| self.expression(item)),
            Expr::Map(map) => map.keys.iter().chain(&map.values).try_for_each(|item| self.expression(item)),
        }
    }

    fn variable(&self, name: &str, span: Span) -> Done {
        if self.scopes.iter().flatten().any(|known| *known == name) {
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

    fn call(&mut self, call: &Spanned<Call<'t>>) -> Done {
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

fn unknown<const N: usize>(what: &str, name: &str, span: Span, known: [&str; N]) -> Problem {
    let hint = match suggest::nearest(name, known) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("known: {}", known.join(", ")),
    };
    at(span, format!("unknown {what} {name}; {hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stores() -> StoreNames {
        ["vault", "sops"].into_iter().collect()
    }

    fn sure(source: &str) -> Vec<String> {
        let template = Template::parse(source, &stores()).unwrap();
        template.references.iter().map(ToString::to_string).collect()
    }

    fn all(source: &str) -> Vec<String> {
        Template::parse(source, &stores()).unwrap().calls.into_keys().collect()
    }

    #[test]
    fn references_that_every_rendering_needs() {
        for (source, references) in [
            ("no secret", &[][..]),
            ("{{ secret('vault:a').x }}{{ secret(\"vault:b#c\") }}", &["vault:a", "vault:b#c"]),
            ("{{ secret('vault:a').x }}{{ secret('vault:a').y }}", &["vault:a"]),
            ("{# {{ secret('vault:a') }} #}{% raw %}{{ secret('vault:b') }}{% endraw %}", &[]),
            ("{% if secret('vault:a').x %}{{ secret('vault:b').y }}{% endif %}", &["vault:a"]),
            (
                "{% if secret('vault:a').x %}a{% elif secret('vault:b').x %}{% else %}{{ secret('sops:c').x }}{% endif %}",
                &["vault:a"],
            ),
            ("{{ secret('vault:a').x or secret('vault:b').x }}", &["vault:a"]),
            ("{{ secret('vault:a').x if secret('vault:b').x else secret('sops:c').x }}", &["vault:b"]),
            (
                "{% for k in secret('vault:a') %}{{ secret('vault:b').x }}{% endfor %}{{ secret('sops:c') }}",
                &["vault:a", "sops:c"],
            ),
            ("{% set a = secret('vault:a') %}{{ a.x ~ secret('sops:c').x }}", &["vault:a", "sops:c"]),
            ("{% with a = secret('vault:a') %}{{ a.x }}{% endwith %}", &["vault:a"]),
            (
                "{% set a %}{{ secret('vault:a').x }}{% endset %}{{ a|replace('x', secret('sops:c').x) }}",
                &["vault:a", "sops:c"],
            ),
            ("{% filter upper %}{{ secret('vault:a').x }}{% endfilter %}", &["vault:a"]),
            ("{{ 'a' in secret('vault:a') and secret('vault:b').x is defined }}", &["vault:a"]),
            ("{{ secret('vault:a').x < secret('vault:b').x < secret('sops:c').x }}", &["vault:a", "vault:b"]),
            ("{{ [secret('vault:a').x, secret('vault:b').x]|join(':') }}", &["vault:a", "vault:b"]),
            (
                "{{ {'k': secret('vault:a').x}|tojson }}{{ secret('vault:b').x[1:3] }}",
                &["vault:a", "vault:b"],
            ),
        ] {
            assert_eq!(sure(source), references, "{source}");
        }
        assert_eq!(
            all("{% if secret('vault:a').x %}{{ secret('vault:b').y }}{% endif %}"),
            ["vault:a", "vault:b"]
        );
    }

    #[test]
    fn variables_of_a_template_s_own() {
        for source in [
            "{% set a = 1 %}{{ a }}",
            "{% set a, b = [1, 2] %}{{ a }}{{ b }}",
            "{% for k, v in secret('vault:a')|items if v %}{{ loop.index }}{{ k }}{% else %}none{% endfor %}",
            "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}",
            "{% if true %}{% set a = 1 %}{% endif %}{{ a }}",
            "{% for i in range(3) %}{{ i }}{% endfor %}",
        ] {
            assert!(Template::parse(source, &stores()).is_ok(), "{source}");
        }
    }

    #[test]
    fn what_is_no_template() {
        let quoted = "line 1: secret() takes a reference written out in quotes, not a variable or an expression; choose between references with {% if %}";
        for (source, problem) in [
            ("a\n\n{{ secret(", "line 3: unexpected end of input, expected expression"),
            ("a\n{% if true %}x", "line 2: unexpected end of input, expected end of block"),
            ("{% include 'x' %}", "line 1: unknown statement include"),
            ("{% import 'x' as y %}", "line 1: unknown statement import"),
            ("{% extends 'x' %}", "line 1: unknown statement extends"),
            ("{% macro x() %}{% endmacro %}", "line 1: unknown statement macro"),
            ("\n{{ user }}", "line 2: unknown variable user; write secret(\"<store>:<path>\") for a secret"),
            (
                "{% for a in [1] %}{% endfor %}{{ a }}",
                "line 1: unknown variable a; write secret(\"<store>:<path>\") for a secret",
            ),
            (
                "{{ loop.index }}",
                "line 1: unknown variable loop; write secret(\"<store>:<path>\") for a secret",
            ),
            (
                "{% for a in a %}{% endfor %}",
                "line 1: unknown variable a; write secret(\"<store>:<path>\") for a secret",
            ),
            ("{{ secret }}", "line 1: secret is a function; write secret(…)"),
            ("{% set secret = 1 %}", "line 1: secret has a meaning already; choose another name"),
            ("{{ secrets('vault:a') }}", "line 1: unknown function secrets; did you mean secret?"),
            ("{{ namespace() }}", "line 1: unknown function namespace; known: secret, range"),
            ("{{ 'x'|uper }}", "line 1: unknown filter uper; did you mean upper?"),
            ("{{ 'x'|base64encode }}", "line 1: unknown filter base64encode; did you mean b64encode?"),
            (
                "{{ 'x'|urlize_all }}",
                &format!("line 1: unknown filter urlize_all; known: {}", FILTERS.join(", ")),
            ),
            ("{{ ['x']|map('upper') }}", "line 1: unknown filter map; did you mean max?"),
            ("{{ 1 is definde }}", "line 1: unknown test definde; did you mean defined?"),
            ("{{ 'x'.upper() }}", "line 1: there is no method upper(); use a filter, such as value|upper"),
            ("{{ secret('vault:a')() }}", "line 1: only functions can be called: secret(…) and range(…)"),
            (
                "{{ secret() }}",
                "line 1: secret() names no reference; write secret(\"<store>:<path>\") or secret(\"<store>:<path>#<field>\")",
            ),
            ("{{ secret('') }}", "line 1: secret(…): the reference is empty; write <store>:<path>#<field>"),
            (
                "{{ secret('vault:a', 'vault:b') }}",
                "line 1: secret() takes one reference; call it once for each",
            ),
            ("{% set a = 'vault:a' %}{{ secret(a) }}", quoted),
            ("{{ secret('vault:' ~ 'a') }}", quoted),
            ("{{ secret(secret('vault:a').x) }}", quoted),
            ("{{ secret(ref='vault:a') }}", quoted),
            ("{{ secret(1) }}", quoted),
            (
                "\n\n{{ secret('valut:a') }}",
                "line 3: secret(…): unknown store valut; did you mean vault? configured: sops, vault",
            ),
            (
                "{% if false %}{{ secret('vault:') }}{% endif %}",
                "line 1: secret(…): the path after the store is empty; write <store>:<path>#<field>",
            ),
            (
                "{{ secret('vault:a?mode=0400') }}",
                "line 1: secret(…): option mode has no meaning inside a template; leave it out",
            ),
            (
                "{% autoescape true %}{% endautoescape %}",
                "line 1: autoescape is not available; escape with a filter, such as tojson or quote",
            ),
            (
                "{% for a in [1] recursive %}{{ loop(a) }}{% endfor %}",
                "line 1: a recursive loop is not available; write one loop inside another",
            ),
            ("{% set a.b = 1 %}", "line 1: only a name can be set; write {% set name = … %}"),
        ] {
            assert_eq!(Template::parse(source, &stores()).unwrap_err().to_string(), problem, "{source}");
        }
    }

    #[test]
    fn nesting_ends_before_the_stack_does() {
        for source in [
            format!("{{{{ {}1{} }}}}", "(".repeat(50_000), ")".repeat(50_000)),
            format!("{{{{ {}1{} }}}}", "[".repeat(50_000), "]".repeat(50_000)),
            format!("{{{{ {}1 }}}}", "not ".repeat(50_000)),
            format!("{{{{ {}1 }}}}", "-".repeat(50_000)),
            "{% if 1 %}".repeat(20_000) + &"{% endif %}".repeat(20_000),
        ] {
            assert!(Template::parse(&source, &stores()).is_err());
        }
    }

    #[test]
    fn long_chains_end_before_the_stack_does() {
        let words = "line 1: a tag has more than 400 words and signs; split it into several";
        let branches = "line 1: the template has more than 100 elif; write several templates";
        let plus = |n| format!("{{{{ 1{} }}}}", "+1".repeat(n));
        let filter = |n| format!("{{{{ 'a'{} }}}}", "|upper".repeat(n));
        let lookup = |n| format!("{{{{ secret('vault:a'){} }}}}", ".a".repeat(n));
        let elif = |n| format!("{{% if 1 %}}{}{{% endif %}}", "{% elif 1 %}".repeat(n));
        for (source, problem) in [
            (plus(50_000), words),
            (filter(30_000), words),
            (lookup(50_000), words),
            (elif(10_000), branches),
        ] {
            assert_eq!(Template::parse(&source, &stores()).unwrap_err().to_string(), problem);
        }
        for source in [plus(199), filter(199), lookup(197), elif(100)] {
            assert_eq!(Template::parse(&source, &stores()).err(), None);
        }
    }
}
