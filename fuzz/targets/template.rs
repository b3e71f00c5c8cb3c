//! Templates: what they ask for is found before they run, they end, and no message shows a value.
#![no_main]

use std::collections::BTreeMap;
use std::sync::Arc;

use countersign_agent::Error;
use countersign_agent::identity::{Identity, JwtSvid};
use countersign_agent::render::{Material, Rendered, render};
use countersign_agent::request::{Content, Request, Source};
use countersign_agent::secret::{Node, Secret};
use countersign_fuzz::{CANARY, assert_readable, assert_round_trip, assert_secretive, stores};
use libfuzzer_sys::fuzz_target;

const LIMIT: u64 = 1 << 16;

/// Any secret has the same few members.
struct Stores(Arc<Node>);

impl Stores {
    fn new() -> Self {
        let text = |text: &str| Node::Text(Secret::from(text.to_owned()));
        let list = Node::List(vec![text(CANARY), Node::Null, Node::Bool(true)]);
        let members = [
            ("password", text(CANARY)),
            ("port", Node::Number(Secret::from("5432".to_owned()))),
            ("list", list),
            ("nested", Node::Map(BTreeMap::from([("key".to_owned(), text(CANARY))]))),
        ];
        Self(Arc::new(Node::Map(members.into_iter().map(|(name, node)| (name.to_owned(), node)).collect())))
    }
}

impl Material for Stores {
    fn secret(&self, _: &Source) -> Option<Result<Arc<Node>, Error>> {
        Some(Ok(Arc::clone(&self.0)))
    }

    fn identity(&self) -> Option<&Identity> {
        None
    }

    fn jwt(&self, _: &str) -> Option<Result<Arc<JwtSvid>, Error>> {
        None
    }
}

fuzz_target!(|text: &str| {
    let request = match Request::parse([("template.countersign.dev/file", text)], &stores()) {
        Ok(request) => request,
        Err(error) => return assert_readable(&error.to_string()),
    };
    let file = &request.files[0];
    let Content::Template(template) = &file.content else { panic!("a template is a template") };
    template.references.iter().for_each(assert_round_trip);
    match render(file, &Stores::new(), LIMIT) {
        Ok(Rendered::File(bytes)) => assert!(bytes.len() as u64 <= LIMIT, "{} bytes", bytes.len()),
        Ok(Rendered::Omitted) => {}
        Ok(Rendered::Files(_)) => panic!("a template is one file"),
        Ok(Rendered::Needs(references)) => panic!("{references:?} were to be had"),
        Err(error) => {
            assert_readable(&error.to_string());
            assert_secretive(&format!("{error} {error:?}"), text.as_bytes());
        }
    }
});
