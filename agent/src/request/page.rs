//! What docs/migrate.md promises, row by row: what stands on its right-hand sides is what we understand.

use std::collections::BTreeSet;

use super::{Request, StoreNames};
use crate::store::config::StoreConfig;
use crate::store::vault::explain::Adviser;

const PAGE: &str = include_str!("../../../docs/migrate.md");
/// Where a row says no more than an option or a filter, it is tried on this.
const SECRET: &str = "vault:kv/data/app#password";
/// What is none of a pod's: keys of the store, and names of other things.
const OTHER: [&str; 11] = [
    "#field",
    "..data",
    "60s",
    "addresses",
    "caFile",
    "data: map[…]",
    "login",
    "login.role",
    "namespace",
    "serverName",
    "volumeAttributes",
];

/// The cells of the rows of all tables, without heads and rules.
fn rows() -> Vec<(String, String)> {
    let lines: Vec<_> = PAGE.lines().collect();
    let mut rows = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        let rule = |line: &str| line.starts_with("|---");
        let head = lines.get(number + 1).is_some_and(|next| rule(next));
        if !line.starts_with('|') || rule(line) || head {
            continue;
        }
        let text = line.replace("\\|", "\u{0}");
        let cells: Vec<_> =
            text.trim_matches('|').split('|').map(|cell| cell.replace('\u{0}', "|")).collect();
        let [left, right] = cells.as_slice() else { panic!("two cells: {line}") };
        rows.push((left.trim().to_owned(), right.trim().to_owned()));
    }
    rows
}

/// What stands between backticks.
fn code(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// A pod's key and value as the page means it; none: it is no pod's.
fn asked(code: &str) -> Option<(String, String)> {
    let filled = code
        .replace("common_name=…", "common_name=a.b")
        .replace("ttl=…", "ttl=24h")
        .replace("…#field", "vault:kv/data/app#field");
    let secret = |value: String| ("secret.countersign.dev/x".to_owned(), value);
    let template = |value: String| ("template.countersign.dev/x".to_owned(), value);
    if let Some((key, value)) = filled.split_once(": ").filter(|(key, _)| key.contains("countersign.dev/")) {
        return Some((key.to_owned(), value.trim_matches('"').to_owned()));
    }
    if filled.contains("countersign.dev/") {
        let key = if filled.ends_with('/') { format!("{filled}x") } else { filled.clone() };
        let value = match key.split('/').next() {
            Some("secret.countersign.dev") => SECRET,
            Some("template.countersign.dev") => "text",
            _ if key == "countersign.dev/path" => "/vault/secrets",
            _ => "60s",
        };
        return Some((key, value.to_owned()));
    }
    match filled.chars().next()? {
        '{' => Some(template(filled)),
        '|' => Some(template(format!("{{{{ secret(\"vault:kv/data/app\").x {filled} }}}}"))),
        '?' => {
            let value = match filled.as_str() {
                "?version=" => "?version=1",
                "?refresh=" => "?refresh=60s",
                "?vault.namespace=" => "?vault.namespace=team",
                whole => whole,
            };
            Some(secret(format!("{SECRET}{value}")))
        }
        _ if filled.starts_with("vault:") => Some(secret(filled)),
        _ => None,
    }
}

#[test]
fn every_right_hand_side_is_understood() {
    let stores = StoreNames::from_iter(["vault"]);
    let config = "type: vault\naddresses: ['https://vault:8200']\ncaFile: /ca\nlogin: {role: '{ns}_{sa}'}\n";
    let StoreConfig::Vault(config) = serde_saphyr::from_str(config).unwrap() else {
        panic!("of Vault's kind")
    };
    let adviser = Adviser::new("vault", *config).unwrap();
    let id = "spiffe://example.org/ns/payments/sa/api".parse().unwrap();
    let (mut understood, mut other) = (0, BTreeSet::new());
    for (left, right) in rows() {
        for code in code(&right) {
            let Some((key, value)) = asked(code) else {
                other.insert(code.to_owned());
                continue;
            };
            // A pod has some secret; what only says where its files go is no request without.
            let keys = [
                (key.clone(), value.clone()),
                ("secret.countersign.dev/other".to_owned(), SECRET.to_owned()),
            ];
            let request =
                Request::parse(keys, &stores).unwrap_or_else(|error| panic!("{left}: {code}: {error}"));
            for reference in request.references() {
                let advice = adviser.advise(&id, &reference.source);
                advice.unwrap_or_else(|error| panic!("{left}: {code}: {error}"));
            }
            understood += 1;
        }
    }
    let known = OTHER.map(str::to_owned).into();
    assert_eq!(
        other, known,
        "what is neither a pod's nor known as something else, and what is not there any more"
    );
    assert!(understood >= 40, "{understood}: the tables are where they are looked for");
}
