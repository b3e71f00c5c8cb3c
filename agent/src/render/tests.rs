use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::identity::X509Svid;
use crate::request::{Request, StoreNames};
use crate::spiffe::SpiffeId;

/// A store's answers, written as JSON by the path they are for.
#[derive(Default)]
struct Shelf {
    secrets: HashMap<String, Result<Arc<Node>, Error>>,
    identity: Option<Identity>,
    jwts: HashMap<String, Arc<JwtSvid>>,
}

impl Material for Shelf {
    fn secret(&self, source: &Source) -> Option<Result<Arc<Node>, Error>> {
        self.secrets.get(&*source.path).cloned()
    }

    fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    fn jwt(&self, audience: &str) -> Option<Result<Arc<JwtSvid>, Error>> {
        self.jwts.get(audience).map(|svid| Ok(Arc::clone(svid)))
    }
}

fn node(json: &serde_json::Value) -> Node {
    use serde_json::Value::{Array, Bool, Null, Number, Object, String};
    match json {
        Null => Node::Null,
        Bool(value) => Node::Bool(*value),
        Number(number) => Node::Number(Secret::from(number.to_string())),
        // There are no raw bytes in JSON: this stands for some.
        String(text) if text == "<bytes>" => Node::Text(Secret::new(vec![0xff, 0x00])),
        String(text) => Node::Text(Secret::from(text.clone())),
        Array(elements) => Node::List(elements.iter().map(node).collect()),
        Object(members) => {
            Node::Map(members.iter().map(|(name, member)| (name.clone(), node(member))).collect())
        }
    }
}

fn shelf(json: &serde_json::Value) -> Shelf {
    let secrets = json.as_object().unwrap().iter();
    Shelf {
        secrets: secrets.map(|(path, json)| (path.clone(), Ok(Arc::new(node(json))))).collect(),
        ..Shelf::default()
    }
}

fn stores() -> StoreNames {
    ["s"].into_iter().collect()
}

fn spec(key: &str, value: &str) -> FileSpec {
    Request::parse([(key, value)], &stores()).unwrap().files.remove(0)
}

fn reference(text: &str, shelf: &Shelf) -> Result<Rendered, Error> {
    render(&spec("secret.countersign.dev/f", text), shelf, 1 << 20)
}

fn template(text: &str, shelf: &Shelf) -> Result<Rendered, Error> {
    render(&spec("template.countersign.dev/f", text), shelf, 1 << 20)
}

fn text(rendered: Rendered) -> String {
    match rendered {
        Rendered::File(bytes) => String::from_utf8(bytes.expose().to_vec()).unwrap(),
        other @ (Rendered::Files(_) | Rendered::Omitted | Rendered::Needs(_)) => panic!("{other:?}"),
    }
}

fn example() -> Shelf {
    shelf(&serde_json::json!({
        "app": {
            "username": "ada", "password": "p'w &/é", "port": 5432, "ratio": 1.50, "tls": true, "nothing": null,
            "hosts": ["a", "b"], "deep": { "x/y": { "z": "deep down" } }, "b64": "AAEC/w==", "text64": "aGVsbG8=",
            "bad64": "AAE*", "bytes": "<bytes>", "empty": {},
        },
        "text": "just text",
        "many": (0..25).map(|n| (format!("field{n:02}"), n.into())).collect::<serde_json::Map<_, _>>(),
    }))
}

#[test]
fn fields_become_bytes() {
    let shelf = example();
    for (wanted, bytes) in [
        ("s:app#username", "ada"),
        ("s:app#port", "5432"),
        ("s:app#tls", "true"),
        ("s:app#hosts", "[\"a\",\"b\"]"),
        ("s:app#/hosts/1", "b"),
        ("s:app#/deep/x~1y/z", "deep down"),
        ("s:app#deep", "{\"x/y\":{\"z\":\"deep down\"}}"),
        ("s:app#empty", "{}"),
        ("s:app#text64?encoding=base64", "hello"),
        ("s:text", "just text"),
    ] {
        assert_eq!(text(reference(wanted, &shelf).unwrap()), bytes, "{wanted}");
    }
    let Rendered::File(raw) = reference("s:app#b64?encoding=base64", &shelf).unwrap() else { panic!() };
    assert_eq!(raw.expose(), [0, 1, 2, 255]);
    let Rendered::File(raw) = reference("s:app#bytes", &shelf).unwrap() else { panic!() };
    assert_eq!(raw.expose(), [255, 0]);
}

#[test]
fn fields_that_are_not_to_be_had() {
    let shelf = example();
    let fields =
        "it has b64, bad64, bytes, deep, empty, hosts, nothing, password, port, ratio, text64, tls, username";
    for (wanted, message) in [
        ("s:app#user", format!("s:app#user: no such field; {fields}")),
        (
            "s:app#/user",
            format!("s:app#/user: no such field; the secret {}", fields.trim_start_matches("it ")),
        ),
        ("s:app#/deep/a", "s:app#/deep/a: no such field; #/deep has x/y".to_owned()),
        ("s:app#/hosts/2", "s:app#/hosts/2: no such field; #/hosts is a list of 2".to_owned()),
        ("s:app#/hosts/01", "s:app#/hosts/01: no such field; #/hosts is a list of 2".to_owned()),
        ("s:app#/hosts/-", "s:app#/hosts/-: no such field; #/hosts is a list of 2".to_owned()),
        (
            "s:app#/password/x",
            "s:app#/password/x: no such field; #/password is a text without fields".to_owned(),
        ),
        ("s:app#/empty/x", "s:app#/empty/x: no such field; #/empty has no fields".to_owned()),
        ("s:app#nothing", "s:app#nothing: the value there is null; set one in the store".to_owned()),
        ("s:text#x", "s:text#x: no such field; it is a text without fields".to_owned()),
        (
            "s:many#x",
            format!(
                "s:many#x: no such field; it has {} and 5 more",
                (0..20).map(|n| format!("field{n:02}")).collect::<Vec<_>>().join(", ")
            ),
        ),
    ] {
        let error = reference(wanted, &shelf).unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }));
        assert_eq!(error.to_string(), message);
        assert_eq!(reference(&format!("{wanted}?optional"), &shelf).unwrap(), Rendered::Omitted);
    }
    for (wanted, message) in [
        (
            "s:app#bad64?encoding=base64",
            "store s: s:app#bad64 is not base64 at byte 3; leave out encoding=base64, or put it right in the store",
        ),
        (
            "s:app#deep?encoding=base64",
            "store s: s:app#deep is no text that could be base64; name a field of it, or leave out encoding",
        ),
        (
            "s:app",
            "store s: s:app holds bytes that are not utf-8, which json cannot carry; name the one field you need",
        ),
    ] {
        assert_eq!(reference(wanted, &shelf).unwrap_err().to_string(), message);
    }
}

#[test]
fn what_the_store_says_is_passed_on() {
    let mut shelf = Shelf::default();
    assert!(matches!(reference("s:a#x", &shelf).unwrap(), Rendered::Needs(needs) if needs.len() == 1));
    let gone = Error::NotFound { reference: "s:a".to_owned(), problem: "no such secret".to_owned() };
    let down =
        Error::StoreUnavailable { store: "s".to_owned(), problem: "down".to_owned(), retry_after: None };
    let denied = Error::Denied { reference: "s:a".to_owned(), problem: "denied".to_owned() };
    for error in [gone.clone(), down.clone(), denied.clone()] {
        shelf.secrets.insert("a".to_owned(), Err(error.clone()));
        assert_eq!(reference("s:a#x", &shelf), Err(error.clone()));
        assert_eq!(template("{{ secret('s:a').x }}", &shelf), Err(error.clone()));
        assert_eq!(text(template("{% if false %}{{ secret('s:a').x }}{% endif %}", &shelf).unwrap()), "");
        let optional = reference("s:a#x?optional", &shelf);
        let in_template = template("{{ secret('s:a#x?optional')|default('none') }}", &shelf);
        if error == gone {
            assert_eq!(optional, Ok(Rendered::Omitted));
            assert_eq!(text(in_template.unwrap()), "none");
        } else {
            assert_eq!(optional, Err(error.clone()));
            assert_eq!(in_template, Err(error));
        }
    }
}

/// A pod's identity of bytes that are no certificates, with a trust domain beside its own.
fn somebody() -> Identity {
    let id: SpiffeId = "spiffe://example.org/ns/a/sa/b".parse().unwrap();
    let svid = X509Svid {
        spiffe_id: id.clone(),
        chain: vec![b"leaf".to_vec(), b"intermediate".to_vec()],
        key: Secret::new(b"key".to_vec()),
        roots: vec![b"root".to_vec()],
        federated: BTreeMap::from([("partner.example".parse().unwrap(), vec![b"partner".to_vec()])]),
        not_before: UNIX_EPOCH,
        not_after: UNIX_EPOCH + Duration::from_secs(3600),
    };
    Identity {
        spiffe_id: id,
        x509: Arc::new(svid),
        renew_at: UNIX_EPOCH,
        ticket: crate::identity::Ticket::default(),
    }
}

fn certificate(body: &str) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
}

#[test]
fn identities_become_pem() {
    let mut shelf = Shelf::default();
    let files = Request::parse(
        [("svid.countersign.dev/x509", "chain,key,bundle"), ("jwt.countersign.dev/token", "aud")],
        &stores(),
    )
    .unwrap()
    .files;
    for file in &files {
        let error = render(file, &shelf, 0).unwrap_err();
        assert!(matches!(error, Error::IdentityUnavailable { .. }), "{error}");
    }
    shelf.identity = Some(somebody());
    let token =
        JwtSvid { token: Secret::from("a.b.c".to_owned()), expires: UNIX_EPOCH, renew_at: UNIX_EPOCH };
    shelf.jwts.insert("aud".to_owned(), Arc::new(token));
    let rendered: Vec<String> = files.iter().map(|file| text(render(file, &shelf, 0).unwrap())).collect();
    assert_eq!(
        rendered,
        [
            certificate("cm9vdA=="),
            certificate("bGVhZg==") + &certificate("aW50ZXJtZWRpYXRl"),
            "-----BEGIN PRIVATE KEY-----\na2V5\n-----END PRIVATE KEY-----\n".to_owned(),
            "a.b.c".to_owned(),
        ]
    );
}

#[test]
fn identities_in_other_forms() {
    let shelf = Shelf { identity: Some(somebody()), ..Shelf::default() };
    let rendered = |key: &str, value: &str| {
        let request = Request::parse([(key, value)], &stores()).unwrap();
        request.files.iter().map(|file| render(file, &shelf, 0)).collect::<Vec<_>>()
    };
    let bytes = |bytes: &[u8]| Ok(Rendered::File(Secret::new(bytes.to_vec())));
    let chain = certificate("bGVhZg==") + &certificate("aW50ZXJtZWRpYXRl");
    let pair = format!("-----BEGIN PRIVATE KEY-----\na2V5\n-----END PRIVATE KEY-----\n{chain}");
    assert_eq!(rendered("svid.countersign.dev/pem", "svid.pem"), [bytes(pair.as_bytes())]);
    assert_eq!(
        rendered("svid.countersign.dev/der", "1,2,3"),
        [bytes(b"leafintermediate"), bytes(b"key"), bytes(b"root")]
    );
    let truststore = jks::truststore("example.org", &[b"root".to_vec()]);
    assert_eq!(rendered("svid.countersign.dev/jks-truststore", "ca.jks"), [bytes(&truststore)]);
    let truststore = pkcs12::truststore("example.org", &[b"root".to_vec()]);
    assert_eq!(rendered("svid.countersign.dev/p12-truststore", "ca.p12"), [Ok(Rendered::File(truststore))]);
    let chain = [b"leaf".to_vec(), b"intermediate".to_vec()];
    let keystore = pkcs12::keystore(&Secret::new(b"key".to_vec()), &chain).unwrap();
    assert_eq!(rendered("svid.countersign.dev/p12", "tls.p12"), [Ok(Rendered::File(keystore))]);

    let named = |name: &str, body: &str| {
        (
            FilePath::parse(&format!("tls/{name}.spiffe-trust-bundle.x509.pem")).unwrap(),
            Secret::from(certificate(body)),
        )
    };
    let bundles = vec![named("example.org", "cm9vdA=="), named("partner.example", "cGFydG5lcg==")];
    assert_eq!(
        rendered("svid.countersign.dev/folder", "tls"),
        [Ok(Rendered::Files(bundles)), bytes(pair.as_bytes())]
    );

    let bundle = "bundle.countersign.dev/b.pem";
    let partner = bytes(certificate("cGFydG5lcg==").as_bytes());
    assert_eq!(rendered(bundle, "partner.example"), [bytes(certificate("cGFydG5lcg==").as_bytes())]);
    assert_eq!(rendered(bundle, "spiffe://partner.example?optional"), [partner]);
    assert_eq!(rendered(bundle, "example.org"), [bytes(certificate("cm9vdA==").as_bytes())]);
    assert_eq!(rendered(bundle, "else.example?optional"), [Ok(Rendered::Omitted)]);
    assert_eq!(
        rendered(bundle, "else.example")[0].as_ref().unwrap_err().to_string(),
        "trust domain else.example: no bundle of it came with \
         spiffe://example.org/ns/a/sa/b; its federated trust domains: partner.example; let its registration entry \
         federate with else.example, or write else.example?optional"
    );
}

#[test]
fn templates() {
    let shelf = example();
    for (source, wanted) in [
        ("plain\n", "plain\n"),
        ("{{ secret('s:app').username }}", "ada"),
        ("{{ secret('s:app')[\"username\"] }}", "ada"),
        ("{{ secret('s:app#username') }}\n", "ada\n"),
        ("{{ secret('s:app#/deep/x~1y').z }}", "deep down"),
        ("{{ secret('s:app').hosts[1] }}{{ secret('s:app#hosts')[0] }}", "ba"),
        ("<{{ secret('s:app').password }}>", "<p'w &/é>"),
        (
            "u://{{ secret('s:app').username|urlencode }}:{{ secret('s:app').password|urlencode }}@h",
            "u://ada:p%27w%20%26%2F%C3%A9@h",
        ),
        ("P={{ secret('s:app').password|quote }}", "P='p'\\''w &/é'"),
        ("{{ secret('s:app').password|tojson }}", "\"p'w &/é\""),
        ("{{ secret('s:app').deep|tojson }}", "{\"x/y\":{\"z\":\"deep down\"}}"),
        (
            "{{ {'a': secret('s:app').port, 'b': [true, none], 'c': secret('s:app').hosts}|tojson }}",
            "{\"a\":5432,\"b\":[true,null],\"c\":[\"a\",\"b\"]}",
        ),
        ("{{ secret('s:app').username|b64encode }}", "YWRh"),
        ("{{ secret('s:app').bytes|b64encode }}", "/wA="),
        ("{{ secret('s:app').text64|b64decode }}", "hello"),
        ("{{ secret('s:app#text64?encoding=base64') }}", "hello"),
        ("{{ secret('s:app').b64|b64decode|b64encode }}", "AAEC/w=="),
        (
            "{{ secret('s:app').port }} {{ secret('s:app').port + 1 }} {{ secret('s:app').ratio }} {{ secret('s:app').tls }}",
            "5432 5433 1.5 true",
        ),
        ("{% if secret('s:app').username == 'ada' and secret('s:app').tls %}yes{% endif %}", "yes"),
        ("{% for host in secret('s:app').hosts %}{{ host }}:{{ loop.index }};{% endfor %}", "a:1;b:2;"),
        ("{% for k, v in secret('s:app#deep')|items %}{{ k }}={{ v.z }}{% endfor %}", "x/y=deep down"),
        ("{% for k in secret('s:many') if k < 'field02' %}{{ k }} {% endfor %}", "field00 field01 "),
        ("{{ secret('s:app').hosts|join(',') }} {{ secret('s:app').hosts|length }}", "a,b 2"),
        ("{{ secret('s:app').nope|default('d') }}{{ secret('s:app').nothing|default('n') }}", "dn"),
        (
            "{{ 'yes' if secret('s:app').nope is defined else 'no' }}{{ 'yes' if 'tls' in secret('s:app') else 'no' }}",
            "noyes",
        ),
        ("{% set u = secret('s:app').username %}{{ u ~ '@' ~ u|upper }}", "ada@ADA"),
        ("{% set u %}{{ secret('s:app').username }}!{% endset %}{{ u|replace('a', 'b') }}", "bdb!"),
        ("{{ secret('s:app').username[1:] }}{% raw %}{{ x }}{% endraw %}{# no #}", "da{{ x }}"),
        ("a\n{%- if true %} b {%- endif %}\n", "a b\n"),
        ("{{ 'x\ny'|indent(2) }}{{ ' t '|trim }}{{ 'a,b'|split(',')|last }}", "x\n  ytb"),
        ("{{ '<&>' }}", "<&>"),
        ("{% for i in range(3) %}{{ i }}{% endfor %}", "012"),
    ] {
        assert_eq!(
            template(source, &shelf).map(text).map_err(|error| error.to_string()),
            Ok(wanted.to_owned()),
            "{source}"
        );
    }
}

#[test]
fn references_in_branches_are_asked_for_as_they_open_up() {
    let source = "{% if secret('s:a').x == '1' %}{{ secret('s:b').x }}{% for n in secret('s:c').list %}{{ secret('s:d')[n] }}{% endfor %}{% else %}{{ secret('s:e').x }}{% endif %}";
    let answers = serde_json::json!({ "a": {"x": "1"}, "b": {"x": "B"}, "c": {"list": ["p", "q"]}, "d": {"p": "P", "q": "Q"} });
    let mut shelf = Shelf::default();
    let mut asked = Vec::new();
    let rendered = loop {
        match template(source, &shelf).unwrap() {
            Rendered::Needs(needs) => {
                assert!(!needs.is_empty());
                let paths: Vec<String> = needs.iter().map(|need| need.source.path.to_string()).collect();
                for path in &paths {
                    // What was asked for only because of a placeholder need not be there.
                    let answer = answers.get(path).map(|json| Arc::new(node(json)));
                    let gone =
                        Error::NotFound { reference: path.clone(), problem: "no such secret".to_owned() };
                    shelf.secrets.insert(path.clone(), answer.ok_or(gone));
                }
                asked.push(paths);
            }
            rendered @ (Rendered::File(_) | Rendered::Files(_) | Rendered::Omitted) => break text(rendered),
        }
    };
    assert_eq!(rendered, "BPQ");
    assert_eq!(asked, [vec!["a", "e"], vec!["b", "c"], vec!["d"]]);
}

#[test]
fn what_goes_wrong_while_rendering() {
    let shelf = example();
    let types = "an operation, filter or argument does not fit its value; look at the types, or convert with |int or |string";
    let too_much = "the template does too much; it loops too often, or makes too much text";
    for (source, problem) in [
        (
            "a\nb {{ secret('s:app') }}",
            "line 2: a map or list cannot be printed; name a field of it, or use |tojson or |join",
        ),
        (
            "{{ [1, 2] }}",
            "line 1: a map or list cannot be printed; name a field of it, or use |tojson or |join",
        ),
        ("{{ none }}", "line 1: none cannot be printed; print a field, or give a default"),
        ("{{ secret('s:app').bytes }}", "line 1: bytes that are not utf-8 cannot be printed; use |b64encode"),
        (
            "{{ secret('s:app').bytes|quote }}",
            "line 1: quote takes a text, and this is not utf-8; use b64encode",
        ),
        ("{{ secret('s:app').bad64|b64decode }}", "line 1: what b64decode is given is not base64 at byte 3"),
        (
            "{{ secret('s:app')|b64encode }}",
            "line 1: b64encode takes a text; name a field, or put tojson before it",
        ),
        (
            "{{ secret('s:app')|tojson }}",
            "line 1: tojson is given bytes that are not utf-8; name the fields you need",
        ),
        (
            "{{ [1][5] }}",
            "line 1: something is used that is not there; give it a default, as in value|default(\"…\")",
        ),
        ("{{ secret('s:app').username + 1 }}", &format!("line 1: {types}")),
        ("{{ secret('s:app').username|int }}", &format!("line 1: {types}")),
        ("{{ 'x'|replace('y') }}", "line 1: a filter, test or function is given too few arguments"),
        ("{{ 'x'|upper('y') }}", "line 1: a filter, test or function is given too many arguments"),
        (
            "{% set a, b, c = secret('s:app').hosts %}",
            "line 1: a value does not come apart into that many names",
        ),
        (
            "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
            &format!("line 1: {too_much}"),
        ),
        ("{% for i in range(1000000) %}x{% endfor %}", &format!("line 1: {types}")),
        ("{{ 'x' * 100000000 }}", &format!("line 1: {too_much}")),
    ] {
        let error = template(source, &shelf).unwrap_err();
        assert_eq!(error.to_string(), format!("template.countersign.dev/f: {problem}"), "{source}");
        assert!(matches!(error, Error::Template { .. }));
    }
    let error = template("\n{{ secret('s:app').usr }}", &shelf).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }));
    assert_eq!(
        error.to_string(),
        "s:app: no field usr, which line 2 of the template uses; it has b64, bad64, bytes, deep, empty, hosts, nothing, password, port, ratio, text64, tls, username"
    );
    let error = template("{{ secret('s:app')['us\u{1b}r'] }}", &shelf).unwrap_err();
    assert!(error.to_string().starts_with("s:app: no field us\u{fffd}r, which line 1"), "{error}");
    let error = template("{{ secret('s:app').hosts[secret('s:app').port] }}", &shelf).unwrap_err();
    assert_eq!(
        error.to_string(),
        "s:app: no such field, which line 1 of the template uses; it is a list of 2"
    );
    let error = template("{{ secret('s:app#usr') }}", &shelf).unwrap_err();
    assert!(error.to_string().starts_with("s:app#usr: no such field; it has b64"), "{error}");
}

#[test]
fn output_is_bounded_while_it_is_written() {
    let shelf = example();
    let spec = spec("template.countersign.dev/f", "{% for i in range(11) %}0123456789{% endfor %}");
    assert_eq!(text(render(&spec, &shelf, 110).unwrap()).len(), 110);
    let error = render(&spec, &shelf, 109).unwrap_err();
    assert_eq!(
        error.to_string(),
        "template.countersign.dev/f: line 1: the output is larger than the volume's 109 bytes; write less, or raise the driver's --volume-capacity"
    );
}

#[test]
fn work_and_memory_are_bounded() {
    let shelf = shelf(&serde_json::json!({ "big": { "x": "y".repeat(1 << 20), "l": vec!["z"; 10_000] } }));
    let double = |start: &str, step: &str, end: &str| format!("{start}{}{end}", step.repeat(60));
    for source in [
        double("{% set a = 'xxxxxxxx' %}", "{% set a = a ~ a %}", "{{ a|length }}"),
        double("{% set a = 'xxxxxxxx' %}", "{% set a = a + a %}", "{{ a|length }}"),
        double("{% set a = 'xxxxxxxx' %}", "{% set a %}{{ a }}{{ a }}{% endset %}", "{{ a|length }}"),
        double("{% set a = 'xxxxxxxx' %}", "{% set a = a|replace('x', 'xx') %}", "{{ a|length }}"),
        double("{% set a = 'xxxxxxxx' %}", "{% set a = a|list|join(a) %}", "{{ a|length }}"),
        double("{% set a = 'xxxxxxxx' %}", "{% set a = a|urlencode|b64encode ~ a|tojson ~ a|quote %}", "{{ a|length }}"),
        double("{% set a = [1] %}", "{% set a = [a, a] %}", "{{ a|tojson }}"),
        double("{% set a = [1] %}", "{% set a = [a, a] %}", "{{ a|string|length }}"),
        double("{% set a = [1] %}", "{% set a = [a, a] %}", "{{ a ~ 'x' }}"),
        double("{% set a = [1] %}{% set b = [1] %}", "{% set a = [a, a] %}{% set b = [b, b] %}", "{{ a == b }}"),
        double("{% set a = [1] %}{% set b = [1] %}", "{% set a = [a, a] %}{% set b = [b, b] %}", "{{ a in [b] }}"),
        double("{% set a = [1] %}{% set b = [1] %}", "{% set a = [a, a] %}{% set b = [b, b] %}", "{{ [a, b]|sort|length }}"),
        double("{% set a = [1] %}{% set b = [1] %}", "{% set a = [a, a] %}{% set b = [b, b] %}", "{{ [a, b]|unique|list|length }}"),
        double("{% set a = [1] %}", "{% set a = {'x': a, 'y': a} %}", "{{ {a: 1}|length }}"),
        double("{% set a = [1] %}{% set b = [1] %}", "{% set a = a + a %}{% set b = b + b %}", "{{ a == b }}"),
        "{{ [1] * 100000000 == [1] * 100000000 }}".to_owned(),
        "{% for i in range(100000) %}{% if secret('s:big').l == secret('s:big?refresh=5s').l %}{% endif %}{% endfor %}"
            .to_owned(),
        "{% for i in range(100000) %}{% if secret('s:big').l|sort %}{% endif %}{% endfor %}".to_owned(),
        "{% for i in range(100000) %}{% if 'q' in secret('s:big').l %}{% endif %}{% endfor %}".to_owned(),
        "{% for i in range(100000) %}{% if 'q' in secret('s:big').x %}{% endif %}{% endfor %}".to_owned(),
        "{% for i in range(100000) %}{% if secret('s:big').x == secret('s:big?refresh=5s').x %}{% endif %}{% endfor %}"
            .to_owned(),
        double("", "{% for i in range(10) %}", "x") + &"{% endfor %}".repeat(60),
        "{{ 'x'|indent(100000000) }}{{ 'a\nb'|indent(100000000) }}".to_owned(),
        "{% for i in range(100000) %}{% for x in secret('s:big').l %}{% endfor %}{% endfor %}".to_owned(),
        "{% for i in range(100000) %}{% if secret('s:big').x|upper == 'q' %}{% endif %}{% endfor %}".to_owned(),
        "{% for i in range(100000) %}{% if secret('s:big').x == secret('s:big').x ~ 'q' %}{% endif %}{% endfor %}".to_owned(),
        format!("{{% set a %}}{{% for i in range(100000) %}}{}{{% endfor %}}{{% endset %}}", "x".repeat(60_000)),
    ] {
// Some are refused unread, all others while they run; none runs for long.
        if let Ok(template) = crate::request::Template::parse(&source, &stores()) {
            let spec = FileSpec { content: Content::Template(template), ..spec("template.countersign.dev/f", "x") };
            let error = render(&spec, &shelf, 4 << 20).map(|_| source).unwrap_err();
            assert!(matches!(error, Error::Template { .. }), "{error}");
        }
    }
}

/// Templates that put every value, operator, filter and test together, most of which fails.
fn templates_that_fail() -> Vec<String> {
    let operators = ["+", "-", "*", "/", "//", "%", "**", "~", "<", ">", "<=", "==", "in", "not in"];
    let values = [
        "secret('s:a').v",
        "secret('s:a').n",
        "secret('s:a').l",
        "secret('s:a').m",
        "secret('s:a')",
        "secret('s:t')",
        "secret('s:a').b",
        "1",
        "'x'",
        "[1]",
        "none",
    ];
    let filters = [
        "abs",
        "b64decode",
        "b64encode",
        "bool",
        "capitalize",
        "count",
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
    let tests = ["divisibleby", "startingwith", "endingwith", "odd", "even", "integer"];
    let mut sources = Vec::new();
    for left in values {
        for right in values {
            for operator in operators {
                sources.push(format!("{{% set x = {left} {operator} {right} %}}{{{{ 1 + x }}}}"));
                sources.push(format!("{{{{ {left}|string {operator} {right}|string }}}}{{{{ none }}}}"));
                sources.push(format!("{{{{ {left}|length {operator} {right}|int }}}}{{{{ none }}}}"));
            }
            for filter in filters {
                sources.push(format!("{{% set x = {left}|{filter}({right}) %}}{{{{ 1 + x }}}}"));
                sources.push(format!("{{% set x = {left}|{filter}(key={right}) %}}"));
                sources.push(format!("{{% set x = {left}|{filter}(*{right}) %}}"));
                sources.push(format!("{{% set x = {left}|{filter}(**{right}) %}}"));
            }
            for test in tests {
                sources.push(format!("{{{{ {left} is {test}({right}) }}}}{{{{ none }}}}"));
            }
            sources.push(format!("{{{{ {left}[{right}] }}}}"));
            sources.push(format!("{{{{ {left}[{right}:{left}] }}}}"));
            sources.push(format!("{{{{ {{{left}: 1}}[{right}].z }}}}"));
            sources.push(format!("{{{{ range({left}, {right}) }}}}"));
            sources.push(format!("{{% for a, b in {left} %}}{{{{ a + {right} }}}}{{% endfor %}}"));
        }
        for filter in filters {
            sources.push(format!("{{{{ {left}|{filter} }}}}{{{{ none }}}}"));
        }
        sources.push(format!("{{% set a, b, c, d = {left} %}}"));
        sources.push(format!("{{{{ -{left} }}}}"));
        sources.push(format!("{{{{ {left}.zzz.y }}}}"));
        sources.push(format!("{{{{ {left} }}}}{{{{ {left}.zzz }}}}"));
        sources.push(format!("{{% for a in {left} %}}{{{{ a.zzz.y }}}}{{% endfor %}}"));
    }
    sources
}

#[test]
fn no_error_holds_a_value() {
    let canary = "CANARYx";
    let shelf = shelf(&serde_json::json!({
        "a": { "v": canary, "n": 8_675_309, "l": [canary, "CANARYy"], "m": { "k": canary }, "list64": "CANARY*", "b": "<bytes>" },
        "t": canary,
    }));
    let sources = templates_that_fail();
    let (mut failed, mut kinds) = (0, std::collections::BTreeSet::new());
    for source in &sources {
        // What is refused unread has no value to show; the rest has to be read to know.
        let Ok(parsed) = crate::request::Template::parse(source, &stores()) else { continue };
        let Err(error) = super::template::render("key", &parsed, &shelf, 1 << 20) else { continue };
        failed += 1;
        let (shown, debugged) = (error.to_string(), format!("{error:?}"));
        for told in [&shown, &debugged] {
            assert!(!told.contains("CANARY") && !told.contains("8675309"), "{source}: {told}");
        }
        kinds.insert(shown);
    }
    assert!(failed > 1000, "only {failed} of {} failed", sources.len());
    assert!(kinds.len() > 8, "{kinds:?}");
    // Plain references too.
    for wanted in [
        "s:a#x",
        "s:a#/v/x",
        "s:a#/l/9",
        "s:a#list64?encoding=base64",
        "s:a#v?encoding=base64",
        "s:a",
        "s:a#m?encoding=base64",
    ] {
        let error = reference(wanted, &shelf).unwrap_err().to_string();
        assert!(!error.contains("CANARY") && !error.contains("8675309"), "{error}");
    }
}
