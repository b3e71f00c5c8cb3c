//! What is read of a file, and what makes it unreadable.

use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::store::sops::{emit, write};

fn read(text: &str, format: Format) -> Result<Node, Flaw> {
    parse(text.as_bytes(), format, &ring(&["first"]))
}

fn flaw(text: &str) -> String {
    let flaw = read(text, Format::Yaml).unwrap_err();
    format!("{flaw}")
}

/// Numbers compare by value: sops spells them by the rules of its output.
fn assert_same(node: &Node, json: &serde_json::Value, path: &str) {
    use serde_json::Value;
    match (node, json) {
        (Node::Null, Value::Null) => {}
        (Node::Bool(one), Value::Bool(other)) => assert_eq!(one, other, "{path}"),
        (Node::Number(_), Value::Number(number)) if number.is_i64() => {
            assert_eq!(text(node), number.to_string(), "{path}");
        }
        (Node::Number(_), Value::Number(number)) => {
            assert_eq!(text(node).parse::<f64>().ok(), number.as_f64(), "{path}");
        }
        (Node::Text(_), Value::String(string)) => assert_eq!(text(node), string, "{path}"),
        (Node::List(nodes), Value::Array(values)) => {
            assert_eq!(nodes.len(), values.len(), "{path}");
            nodes.iter().zip(values).for_each(|(node, value)| assert_same(node, value, &format!("{path}[]")));
        }
        (Node::Map(members), Value::Object(values)) => {
            assert_eq!(members.len(), values.len(), "{path}");
            for (key, node) in members {
                assert_same(node, &values[key], &format!("{path}.{key}"));
            }
        }
        (node, json) => panic!("{path}: {node:?} is not {json}"),
    }
}

#[test]
fn what_sops_wrote_is_read_as_sops_reads_it() {
    for (name, format) in [("everything.yaml", Format::Yaml), ("everything.json", Format::Json)] {
        let node = read(&fixture(name), format).unwrap();
        assert_same(&node, &serde_json::from_str(&fixture(&format!("{name}.plain"))).unwrap(), name);
    }
    let blob = read(&fixture("binary.json"), Format::Json).unwrap();
    assert_eq!(text(at(&blob, "data")), "hunter2 raw \u{1} text\n");
}

#[test]
fn anchors_were_expanded_and_merge_keys_are_merged() {
    let node = read(&fixture("anchors.yaml"), Format::Yaml).unwrap();
    assert_eq!((text(at(&node, "dev.user")), text(at(&node, "dev.port"))), ("hunter2-base", "2"));
    assert_eq!(text(at(&node, "copy.user")), "hunter2-base");
    for (at_index, spelled) in ["+Inf", "-Inf", "NaN"].iter().enumerate() {
        let special = at(&node, &format!("special_unencrypted.{at_index}"));
        assert!(matches!(special, Node::Text(_)), "JSON has no such number");
        assert_eq!(text(special), *spelled);
    }
    let Node::Text(bytes) = at(&node, "raw") else { panic!() };
    assert_eq!(bytes.expose(), b"hello\xc0\x80\xc0");
    assert_eq!(at(&node, "raw"), at(&node, "raw_unencrypted"));
}

#[test]
fn files_that_are_encrypted_in_part() {
    for (name, path, value) in [
        ("encrypted-suffix.yaml", "tree_enc.a.1", "hunter2-tree"),
        ("unencrypted-suffix.yaml", "password_enc", "hunter2-suffix"),
        ("encrypted-regex.yaml", "stringData.password", "hunter2-password"),
        ("unencrypted-regex.yaml", "stringData.port", "5432"),
        ("mac-only-encrypted.yaml", "stringData.password", "hunter2-password"),
        ("two-recipients.yaml", "password_enc", "hunter2-suffix"),
    ] {
        let node = read(&fixture(name), Format::Yaml).unwrap_or_else(|flaw| panic!("{name}: {flaw}"));
        assert_eq!(text(at(&node, path)), value, "{name}");
    }
}

#[test]
fn key_groups() {
    let file = fixture("shamir.yaml");
    for keys in [&["first", "second"][..], &["third", "first"], &["first", "second", "third"]] {
        let node = parse(file.as_bytes(), Format::Yaml, &ring(keys)).unwrap();
        assert_eq!(text(at(&node, "password_enc")), "hunter2-suffix");
    }
    let flaw = parse(file.as_bytes(), Format::Yaml, &ring(&["first"])).unwrap_err().to_string();
    assert!(flaw.contains("open 1 of its 3 key groups, and 2 are needed"), "{flaw}");
    // With all shares needed, two of three give another key.
    let all = file.replace("shamir_threshold: 2", "shamir_threshold: 3");
    let flaw = parse(all.as_bytes(), Format::Yaml, &ring(&["first", "second"])).unwrap_err().to_string();
    assert!(flaw.contains("3 are needed"), "{flaw}");
}

#[test]
fn other_keys_beside_ours_do_not_matter() {
    let kms = "sops:\n    kms:\n        - arn: arn:aws:kms:eu-west-1:1:key/x\n          created_at: \"2024-01-01T00:00:00Z\"\n          enc: AAAA\n          aws_profile: \"\"\n    pgp: []\n";
    let both = fixture("encrypted-suffix.yaml").replace("sops:\n", kms);
    assert!(read(&both, Format::Yaml).is_ok());
    let stranger = fixture("stranger.yaml").replace("sops:\n", kms);
    assert!(flaw(&stranger).contains("it is encrypted to age1"), "{}", flaw(&stranger));
    let start = stranger.find("    age:").unwrap();
    let end = stranger.find("    lastmodified").unwrap();
    let kms_only = format!("{}{}", &stranger[..start], &stranger[end..]);
    assert!(flaw(&kms_only).contains("encrypted to no age recipient (but to: kms)"), "{}", flaw(&kms_only));
}

#[test]
fn a_wrong_key_names_recipients_and_ours() {
    let [first, third] = ["first", "third"].map(|name| ring(&[name]).recipients().next().unwrap());
    let message = flaw(&fixture("stranger.yaml"));
    assert!(message.contains(&first) && message.contains(&third), "{message}");
    let message = parse(fixture("two-recipients.yaml").as_bytes(), Format::Yaml, &ring(&["third"]))
        .unwrap_err()
        .to_string();
    assert!(message.contains("none of the 2 age recipients is ours"), "{message}");
    let odd = fixture("stranger.yaml").replace(&third, "age1hunter2 is not shown");
    assert!(!flaw(&odd).contains("hunter2"), "{}", flaw(&odd));
}

#[test]
fn what_is_left_out_on_purpose_says_so() {
    assert!(flaw(&fixture("documents.yaml")).contains("a second document is not supported"));
    assert!(flaw(&fixture("comment-regex.yaml")).contains("sops.encrypted_comment_regex is not supported"));
    assert!(flaw("a: hunter2\n").contains("not encrypted"));
    assert!(flaw("").contains("not encrypted"));
    assert!(flaw("- a\n").contains("no mapping at its top"));
    assert!(flaw("sops: x\n").contains("a sops section that is no mapping"));
}

/// Every single value, exchanged for another one of the same file, is found out.
#[test]
fn values_moved_between_keys() {
    let file = fixture("everything.yaml");
    let sealed: Vec<_> =
        file.lines().filter(|line| line.contains(": ENC[") && !line.starts_with(' ')).collect();
    assert!(sealed.len() > 10, "{sealed:?}");
    for pair in sealed.windows(2) {
        let [(key, value), (other_key, other)] =
            [pair[0], pair[1]].map(|line| line.split_once(": ").unwrap());
        let swapped = file
            .replace(pair[0], &format!("{key}: {other}"))
            .replace(pair[1], &format!("{other_key}: {value}"));
        assert!(flaw(&swapped).contains("does not decrypt"), "{key}: {}", flaw(&swapped));
    }
}

#[test]
fn values_changed_removed_and_reordered() {
    let file = fixture("everything.yaml");
    let line = |start: &str| file.lines().find(|line| line.trim_start().starts_with(start)).unwrap();
    let text_line = line("text: ");
    let (_, data) = text_line.split_once("data:").unwrap();
    let flipped = format!("{}{}", if data.starts_with('A') { 'B' } else { 'A' }, &data[1..]);
    assert!(flaw(&file.replace(data, &flipped)).contains("text does not decrypt"));
    for (what, changed) in [
        ("removed", file.replace(&format!("{text_line}\n"), "")),
        ("plain exchanged", file.replace("host_unencrypted: db.example", "host_unencrypted: evil.example")),
        ("plain added", file.replace("host_unencrypted:", "more_unencrypted: x\nhost_unencrypted:")),
        ("plain removed", file.replace("host_unencrypted: db.example\n", "")),
        ("emptied", file.replace(text_line, "text: \"\"")),
        ("nulled", file.replace(text_line, "text: null")),
        ("type exchanged", file.replace(line("digits: "), &line("digits: ").replace("type:str", "type:int"))),
        ("switched", file.replace("    lastmodified:", "    mac_only_encrypted: true\n    lastmodified:")),
    ] {
        assert_ne!(changed, file, "{what}");
        assert_eq!(read(&changed, Format::Yaml), Err(Flaw::Mac), "{what}");
    }
    // In a list, all elements have the same path: only the MAC tells their order.
    let elements: Vec<_> =
        file.lines().filter(|line| line.starts_with("    - ENC[") && line.ends_with("type:str]")).collect();
    let swapped = file.replace(elements[0], "@").replace(elements[1], elements[0]).replace('@', elements[1]);
    assert_eq!(read(&swapped, Format::Yaml), Err(Flaw::Mac));
    // A value that turns into a comment is no way to remove it.
    let commented = file.replace(elements[0], &elements[0].replace("type:str", "type:comment"));
    assert_eq!(read(&commented, Format::Yaml), Err(Flaw::Mac));
    let commented = file.replace(text_line, &text_line.replace("type:str", "type:comment"));
    assert!(flaw(&commented).contains("text is a comment where a value belongs"));
    assert!(flaw(&file.replace(text_line, "text: hunter2")).contains("text is not encrypted, though"));
    assert!(flaw(&file.replace(text_line, "text: 2")).contains("text is not encrypted, though"));
}

#[test]
fn what_mac_only_encrypted_leaves_open_and_what_not() {
    let file = fixture("mac-only-encrypted.yaml");
    assert!(
        read(&file.replace("kind: Secret", "kind: Other"), Format::Yaml).is_ok(),
        "plain values are not under it"
    );
    let switched = file.replace("    mac_only_encrypted: true\n", "");
    assert_eq!(read(&switched, Format::Yaml), Err(Flaw::Mac));
}

#[test]
fn a_damaged_section() {
    let file = fixture("encrypted-suffix.yaml");
    let line = |start: &str| file.lines().find(|line| line.trim_start().starts_with(start)).unwrap();
    let (modified, mac) = (line("lastmodified:"), line("mac:"));
    for (changed, words) in [
        (file.replace(modified, "    lastmodified: \"2020-01-01T00:00:00Z\""), "sops.mac does not decrypt"),
        (file.replace(modified, "    lastmodified: yesterday"), "sops.lastmodified is missing or no time"),
        (file.replace(mac, ""), "sops.mac is missing"),
        (file.replace(mac, "    mac: \"\""), "sops.mac is missing"),
        (file.replace(mac, "    mac: hunter2"), "sops.mac is not of the form"),
        (file.replace("BEGIN AGE", "BEGIN EGA"), "sops.age is damaged"),
        (
            file.replace("    encrypted_suffix: _enc", "    encrypted_regex: \"(\""),
            "sops.encrypted_regex is no regular",
        ),
        (
            file.replace("    encrypted_suffix: _enc", "    encrypted_suffix: [a]"),
            "sops.encrypted_suffix is no text",
        ),
        (
            file.replace("    encrypted_suffix: _enc", "    mac_only_encrypted: perhaps"),
            "mac_only_encrypted is neither",
        ),
        (
            file.replace("    encrypted_suffix: _enc", "    shamir_threshold: -1"),
            "shamir_threshold is no number",
        ),
        (file.replace("    age:\n", "    ega:\n"), "sops.age is missing: the file is encrypted to nobody"),
    ] {
        assert_ne!(changed, file, "{words}");
        let flaw = flaw(&changed);
        assert!(flaw.contains(words) && !flaw.contains("hunter2"), "{flaw}");
    }
}

#[test]
fn no_prefix_of_a_file_is_a_file() {
    for (name, format) in [("everything.yaml", Format::Yaml), ("everything.json", Format::Json)] {
        let file = fixture(name);
        let whole = file.trim_end().len();
        // What follows the MAC in YAML (a default and the version) may be left out.
        let end = file.find("\n    unencrypted_suffix:").unwrap_or(whole);
        for cut in (0..end).step_by(7).filter(|&cut| file.is_char_boundary(cut)) {
            assert!(read(&file[..cut], format).is_err(), "{name} cut at {cut}");
        }
    }
}

#[test]
fn garbage() {
    for bytes in [
        &b"\xff\xfe"[..],
        b"\0",
        b"\x00\x01\x02",
        b"sops",
        b"{",
        b"[",
        b"sops:\n",
        b"sops: {}\n",
        b"{\"sops\":{}}",
    ] {
        for format in [Format::Yaml, Format::Json] {
            assert!(parse(bytes, format, &ring(&["first"])).is_err(), "{bytes:?}");
        }
    }
    assert_eq!(parse(b"a: \xff", Format::Yaml, &ring(&["first"])), Err(Flaw::NotUtf8 { at: 3 }));
}

fn encrypt(plain: &str, format: Format) -> Result<String, Flaw> {
    let recipients: Vec<_> =
        ["second", "first"].map(|name| ring(&[name]).recipients().next().unwrap().parse().unwrap()).into();
    let modified = UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
    let encrypted = write::encrypt(plain.as_bytes(), format, &recipients, modified)?;
    let mut out = Vec::new();
    emit::write(&encrypted.document, format, &mut out).unwrap();
    Ok(String::from_utf8(out).unwrap())
}

#[test]
fn what_we_write_we_read() {
    for (name, format) in [("everything.yaml", Format::Yaml), ("everything.json", Format::Json)] {
        let plain = std::fs::read_to_string(kit("plain").join(name)).unwrap();
        let written = encrypt(&plain, format).unwrap();
        assert!(!written.contains("hunter2"), "{written}");
        for key in ["first", "second"] {
            let node = parse(written.as_bytes(), format, &ring(&[key])).unwrap();
            assert_same(&node, &serde_json::from_str(&fixture(&format!("{name}.plain"))).unwrap(), name);
        }
        // What is decrypted for a person reads the same again.
        let document = read::decrypt(written.as_bytes(), format, &ring(&["first"])).unwrap();
        let mut shown = Vec::new();
        emit::write(&document, format, &mut shown).unwrap();
        let again = encrypt(std::str::from_utf8(&shown).unwrap(), format).unwrap();
        let again = parse(again.as_bytes(), format, &ring(&["first"])).unwrap();
        assert_eq!(again, parse(written.as_bytes(), format, &ring(&["first"])).unwrap());
    }
}

#[test]
fn what_cannot_be_written() {
    assert_eq!(encrypt(&fixture("everything.yaml"), Format::Yaml), Err(Flaw::Encrypted));
    assert!(encrypt("a: &x 1\nb: *x\n", Format::Yaml).unwrap_err().to_string().contains("alias"));
    assert!(encrypt("[1]", Format::Json).unwrap_err().to_string().contains("no mapping"));
}

#[test]
fn a_file_of_no_values_and_one_of_many() {
    for plain in ["", "{}", "a: null\nb: {}\nc: []\nd: \"\"\n"] {
        let written = encrypt(plain, Format::Yaml).unwrap();
        assert!(read(&written, Format::Yaml).is_ok(), "{written}");
    }
    let plain = (0..2000).map(|n| format!("key{n}: value{n}")).collect::<Vec<_>>().join("\n");
    let node = read(&encrypt(&plain, Format::Yaml).unwrap(), Format::Yaml).unwrap();
    assert_eq!(text(at(&node, "key1999")), "value1999");
}
