//! What a template may be, found out before anything is fetched for it.
//!
//! The engine finds an unknown filter or variable only when it comes by; a pod should not learn of it at the first
//! rotation. So the template's syntax tree is read once: every name in it has to be known, and every `secret("…")`
//! has to be written out. A reference put together from values is refused for a second reason: a secret would flow
//! into store requests and messages.
//!
//! What a rendering costs is bounded by the engine's fuel (see [`render`](crate::render)), with one hole: lists are
//! put together and compared for free. `{% set a = [a, a] %}`, thirty times over, is small to keep and takes for ever
//! to compare; `{% set a = a + [1] %}`, ten thousand times, is deeper than the stack when it is dropped. So lists
//! are neither compared nor added, and a list made from variables cannot become a variable.

mod expression;
mod statement;
mod words;

use std::collections::BTreeMap;

use minijinja::machinery::{self, Span, Token};
use minijinja::syntax::SyntaxConfig;

use super::{Problem, Reference, StoreNames, Template, suggest};

/// The most words and signs between `{{` and `}}`, or `{%` and `%}`.
const MAX_TAG_WORDS: usize = 400;
/// The most `elif` in a template.
const MAX_BRANCHES: usize = 100;

/// How templates are written: Jinja's own signs, and every line end kept as it is.
pub(crate) fn syntax() -> SyntaxConfig {
    // Only other signs could fail to build.
    SyntaxConfig::builder().keep_trailing_newline(true).build().unwrap_or_default()
}

impl Template {
    /// Reads a template whose references may name `stores`.
    ///
    /// The error names the line and what stands there; there is no secret yet that it could show.
    pub fn parse(source: &str, stores: &StoreNames) -> Result<Self, Problem> {
        bounded(source)?;
        let tree = machinery::parse(source, "template", syntax()).map_err(|error| {
            let line = error.line().unwrap_or(1);
            Problem::new(format!("line {line}: {}", error.detail().unwrap_or("the template does not parse")))
        })?;
        let mut reader = Reader {
            stores,
            scopes: vec![Vec::new()],
            calls: BTreeMap::new(),
            references: Vec::new(),
            sure: true,
            binding: false,
            in_literal: false,
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
    for (token, span) in machinery::tokenize(source, false, syntax()).map_while(Result::ok) {
        if matches!(token, Token::TemplateData(_) | Token::VariableStart | Token::BlockStart) {
            words = 0;
        } else if matches!(token, Token::Ident("elif")) {
            branches += 1;
        } else {
            words += 1;
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
    /// Whether what is read now gets a name.
    binding: bool,
    /// Whether what is read now is part of a list or map that is written out.
    in_literal: bool,
}

type Done = Result<(), Problem>;

fn at(span: Span, problem: impl std::fmt::Display) -> Problem {
    Problem::new(format!("line {}: {problem}", span.start_line))
}

#[cfg(test)]
mod tests {
    use super::words::FILTERS;
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
            (
                "{{ secret('vault:a').x < secret('vault:b').x|int < secret('sops:c').x }}",
                &["vault:a", "vault:b"],
            ),
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
            "{% with a = 1, b = 2 %}{{ a ~ b }}{{ a + 1 }}{{ 'x' + a + b }}{{ a|int * b|int }}{% endwith %}",
            "{% for a in [1] %}{% if loop.index * 2 == a and not a == 'x' and 'x' in a and a|length < a|int %}{% endif %}{% endfor %}",
            "{% set a = 1 %}{% set b = (a|string)[1:] %}{{ a[1:] }}",
            "{% if true %}{% set a = 1 %}{% endif %}{{ a }}",
            "{% for i in range(3) %}{{ i }}{% endfor %}",
            "{% set a = 1 %}{{ [a, a]|join(':') }}{% set b = [1, secret('vault:a').x] %}{% set c = a|default(b) %}",
        ] {
            assert!(Template::parse(source, &stores()).is_ok(), "{source}");
        }
    }

    #[test]
    fn what_is_no_template() {
        let compared = "line 1: a comparison needs a text or number on one side, and on the left of in; write it out, or write value|string";
        let listed =
            "line 1: a list or map with variable a in it cannot get a name; use it where it is written";
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
            (
                "{{ ['x']|map('upper') }}",
                "line 1: unknown filter map; known: abs, b64decode, b64encode, bool, capitalize, count, d, default, first, float, indent, int, items, join, last, length, lines, list, lower, quote, replace, reverse, round, split, string, title, tojson, trim, upper, urlencode",
            ),
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
            ("{% set a = 1 %}{{ a == a }}", compared),
            ("{% set a = 1 %}{{ a in [1] }}", compared),
            ("{% set a = 1 %}{{ 1 < a < a }}", compared),
            (
                "{% set a = 1 %}{{ a + a }}",
                "line 1: + needs a text or number on one side; write ~ between texts, and value|int for a number",
            ),
            ("{% set a = 1 %}{{ a * 2 }}", "line 1: * needs numbers on both sides; write value|int"),
            (
                "{% set a = 1 %}{% set b = a[1:] %}",
                "line 1: a part of a list cannot get a name; for a part of a text write (value|string)[…]",
            ),
            ("{% set a = 1 %}{% set b = [1, a] %}", listed),
            ("{% set a = 1 %}{% with b = {'x': a|int} %}{% endwith %}", listed),
            ("{% set a = 1 %}{% for b in [[a]] %}{% endfor %}", listed),
            ("{% set a = 1 %}{% set b | default([a, a], true) %}{% endset %}", listed),
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
