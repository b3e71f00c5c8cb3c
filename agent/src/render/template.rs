//! Rendering templates.
//!
//! A pod's author writes the template, so it is not trusted: it can read nothing but the secrets it names, and its
//! work is paid for in fuel, which also bounds the memory it takes. The engine's errors may quote values; none of
//! their text leaves this file. What is told instead is the kind of error, the line, and names that the template
//! itself spells out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use minijinja::value::{Value, ValueKind};
use minijinja::{AutoEscape, Environment, ErrorKind, Output, State, UndefinedBehavior};

use super::buffer::Buffer;
use super::filters::{self, Refusal, refuse};
use super::value::{Misses, Placeholder, text_value, value};
use super::{Material, Rendered, encoding, field};
use crate::Error;
use crate::request::{Encoding, Field, Reference, Template, syntax};
use crate::secret::Node;

/// What a rendering may spend on steps: one for each of the engine's, and for each 64 bytes it makes or writes.
const FUEL: u64 = 100_000;
/// Bytes that one of fuel pays for.
const BYTES_PER_FUEL: u64 = 64;
const RECURSION: usize = 50;

/// Renders `template`, up to `limit` bytes.
pub(super) fn render(
    key: &str,
    template: &Template,
    material: &impl Material,
    limit: u64,
) -> Result<Rendered, Error> {
    let run = Arc::new(Run::new(template, material));
    let capacity = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_syntax(syntax());
    // The whole volume may pass through twice: into a variable, and out of it.
    environment.set_fuel(Some((limit / BYTES_PER_FUEL).saturating_mul(2).saturating_add(FUEL)));
    environment.set_recursion_limit(RECURSION);
    environment.set_formatter(print);
    filters::add(&mut environment, capacity);
    let secrets = Arc::clone(&run);
    environment.add_function("secret", move |text: &str| secrets.secret(text));

    let mut output = Buffer::up_to(capacity);
    let rendered = environment
        .template_from_str(&template.source)
        .and_then(|engine| engine.render_captured_to((), &mut output).map(drop));
    let needs = run.take_needs();
    if !needs.is_empty() {
        // Whatever came out was made with placeholders, errors too.
        return Ok(Rendered::Needs(needs));
    }
    match rendered {
        Ok(()) => Ok(Rendered::File(output.into_secret())),
        Err(error) => Err(run.explain(key, &template.source, &error, output.is_full().then_some(capacity))),
    }
}

/// One secret that the template may ask for.
struct Slot {
    reference: Reference,
    /// None: not fetched yet.
    fetched: Option<Result<Arc<Node>, Error>>,
    made: OnceLock<Value>,
}

/// What one rendering works with, and what it finds out.
struct Run {
    slots: BTreeMap<String, Slot>,
    needs: Mutex<Vec<Reference>>,
    misses: Misses,
}

/// A store's or secret's error on its way through the engine.
#[derive(Debug, thiserror::Error)]
#[error("a secret is not to be had")]
struct NotToBeHad(Error);

impl Run {
    fn new(template: &Template, material: &impl Material) -> Self {
        let slot = |(text, reference): (&String, &Reference)| {
            let fetched = material.secret(&reference.source);
            (text.clone(), Slot { reference: reference.clone(), fetched, made: OnceLock::new() })
        };
        Self {
            slots: template.calls.iter().map(slot).collect(),
            needs: Mutex::default(),
            misses: Misses::default(),
        }
    }

    /// The template's one function.
    fn secret(&self, text: &str) -> Result<Value, minijinja::Error> {
        // The parser has seen every call and its text.
        let slot =
            self.slots.get(text).ok_or_else(|| refuse("secret() takes a reference written out in quotes"))?;
        if let Some(made) = slot.made.get() {
            return Ok(made.clone());
        }
        let found = match &slot.fetched {
            None => {
                let mut needs = self.needs.lock().unwrap_or_else(PoisonError::into_inner);
                if !needs.contains(&slot.reference) {
                    needs.push(slot.reference.clone());
                }
                Ok(Value::from_object(Placeholder))
            }
            Some(Ok(document)) => self.found(document, &slot.reference),
            Some(Err(error)) => Err(error.clone()),
        };
        match found {
            Ok(value) => Ok(slot.made.get_or_init(|| value).clone()),
            Err(Error::NotFound { .. }) if slot.reference.optional => Ok(Value::UNDEFINED),
            Err(error) => {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, "").with_source(NotToBeHad(error)))
            }
        }
    }

    fn found(&self, document: &Arc<Node>, reference: &Reference) -> Result<Value, Error> {
        let node = field::select(document, reference)?;
        if reference.encoding == Encoding::Base64 {
            return Ok(text_value(encoding::bytes(node, reference)?.expose()));
        }
        let path = match &reference.field {
            None => Vec::new(),
            Some(Field::Key(key)) => vec![key.clone()],
            Some(Field::Pointer(tokens)) => tokens.clone(),
        };
        let name = reference.to_string().into();
        // There, for it was just selected.
        Ok(value(document, path, &name, &self.misses).unwrap_or_default())
    }

    fn take_needs(&self) -> Vec<Reference> {
        std::mem::take(&mut self.needs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// An error of the engine in words that hold no value; `full` is the limit, if the output has reached it.
    fn explain(&self, key: &str, source: &str, error: &minijinja::Error, full: Option<usize>) -> Error {
        let line = error.line().unwrap_or(1);
        let causes = || std::iter::successors(std::error::Error::source(error), |cause| cause.source());
        if let Some(NotToBeHad(error)) = causes().find_map(|cause| cause.downcast_ref()) {
            return error.clone();
        }
        let refusal = causes().find_map(|cause| cause.downcast_ref::<Refusal>());
        let problem = match (refusal, full, error.kind()) {
            (Some(Refusal(text)), _, _) => text.clone(),
            (None, Some(limit), _) => {
                format!(
                    "the output is larger than the volume's {limit} bytes; write less, or raise the driver's --volume-capacity"
                )
            }
            (None, None, ErrorKind::UndefinedError) => return self.undefined(key, source, line),
            (None, None, kind) => sentence(kind).to_owned(),
        };
        Error::Template { key: key.to_owned(), problem: format!("line {line}: {problem}") }
    }

    /// Something that is not there was used. Which it was the engine does not tell; the last lookup that found
    /// nothing is the best there is to know.
    fn undefined(&self, key: &str, source: &str, line: usize) -> Error {
        let miss = self.misses.lock().unwrap_or_else(PoisonError::into_inner).take();
        match miss {
            Some(miss) => {
                // A computed name may be a secret; one that the template spells out is none.
                let name = if spells_out(source, &miss.key) {
                    format!("no field {}", field::shown(&miss.key))
                } else {
                    "no such field".to_owned()
                };
                let contents = miss.contents;
                Error::NotFound {
                    reference: miss.reference,
                    problem: format!("{name}, which line {line} of the template uses; {contents}"),
                }
            }
            None => Error::Template {
                key: key.to_owned(),
                problem: format!(
                    "line {line}: something is used that is not there; give it a default, as in value|default(\"…\")"
                ),
            },
        }
    }
}

/// Whether `name` stands in `source` as a word of its own.
fn spells_out(source: &str, name: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    !name.is_empty()
        && source.match_indices(name).any(|(place, _)| {
            let before = source.get(..place).and_then(|before| before.chars().next_back());
            let after = source.get(place + name.len()..).and_then(|after| after.chars().next());
            !before.is_some_and(part_of_word) && !after.is_some_and(part_of_word)
        })
}

/// What went wrong, without the engine's details: those quote values.
fn sentence(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::OutOfFuel => "the template does too much; it loops too often, or makes too much text",
        ErrorKind::MissingArgument => "a filter, test or function is given too few arguments",
        ErrorKind::TooManyArguments => "a filter, test or function is given too many arguments",
        ErrorKind::UnknownMethod => "there are no methods; use a filter, such as value|upper",
        ErrorKind::CannotUnpack => "a value does not come apart into that many names",
        ErrorKind::NonKey => "a value is used as a key that cannot be one",
        ErrorKind::NonPrimitive | ErrorKind::InvalidOperation => {
            "an operation, filter or argument does not fit its value; look at the types, or convert with |int or |string"
        }
        ErrorKind::SyntaxError
        | ErrorKind::TemplateNotFound
        | ErrorKind::UnknownFilter
        | ErrorKind::UnknownTest
        | ErrorKind::UnknownFunction
        | ErrorKind::BadEscape
        | ErrorKind::UndefinedError
        | ErrorKind::BadSerialization
        | ErrorKind::CannotDeserialize
        | ErrorKind::BadInclude
        | ErrorKind::EvalBlock
        | ErrorKind::WriteFailure
        | ErrorKind::InvalidDelimiter
        | _ => "the template cannot be rendered; look at the values and filters of this line",
    }
}

/// Prints the value of `{{ … }}`: scalars as they are, and nothing else.
fn print(output: &mut Output<'_>, _: &mut State<'_, '_>, value: &Value) -> Result<(), minijinja::Error> {
    match value.kind() {
        ValueKind::Undefined => Err(ErrorKind::UndefinedError.into()),
        ValueKind::String => Ok(output.write_str(value.as_str().unwrap_or_default())?),
        ValueKind::Number => Ok(write!(output, "{value}")?),
        // As in every file that will hold it, and not as in Python.
        ValueKind::Bool => Ok(output.write_str(if value.is_true() { "true" } else { "false" })?),
        ValueKind::Bytes => Err(refuse("bytes that are not utf-8 cannot be printed; use |b64encode")),
        ValueKind::None => Err(refuse("none cannot be printed; print a field, or give a default")),
        ValueKind::Map if value.downcast_object_ref::<Placeholder>().is_some() => Ok(()),
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Plain | ValueKind::Invalid | _ => {
            Err(refuse("a map or list cannot be printed; name a field of it, or use |tojson or |join"))
        }
    }
}
