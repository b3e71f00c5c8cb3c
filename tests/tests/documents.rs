//! What the pages promise about our words, held against the words.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says so by panicking")]

use std::fs;
use std::path::Path;

use countersign_tests::processes::workspace;

/// What others say and the page explains: Kubernetes, helm.
const OTHERS: [&str; 11] = [
    "(no CSIDriver object)",
    "failed calling webhook \"inject.countersign.dev\"",
    "driver name csi.countersign.dev not found in the list of registered CSI drivers",
    "helm install",
    "additional properties '",
    "' not allowed",
    "invalid ownership metadata",
    "hostPath type check failed:",
    "is not a file",
    "MountVolume.SetUp failed for volume \"kubeletdir-",
    "\" : hostPath type check failed,",
];
/// Shorter pieces between two `…` are found by chance.
const SHORTEST: usize = 6;

/// All text that may end in a message, without what makes a line of source code of it.
fn sources() -> String {
    let mut all = String::new();
    for directory in ["agent/src", "driver/src", "charts/countersign/templates"] {
        add(&workspace().join(directory), &mut all);
    }
    let mut text = String::new();
    let mut lines = all.lines().peekable();
    while let Some(line) = lines.next() {
        // A string that goes on in the next line.
        let mut line = line.to_owned();
        while let Some(start) = line.strip_suffix('\\') {
            line = start.to_owned() + lines.next().unwrap_or_default().trim_start();
        }
        text += &line.replace("\\\"", "\"").replace('`', "");
        text.push('\n');
    }
    text
}

fn add(directory: &Path, all: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            add(&path, all);
        } else if let Ok(text) = fs::read_to_string(&path) {
            *all += &text;
            all.push('\n');
        }
    }
}

/// The fixed pieces of a message: what stands for something else is `…` or `<…>`.
fn pieces(message: &str) -> Vec<String> {
    let mut fixed = String::new();
    let mut inside = false;
    for letter in message.chars() {
        match letter {
            '<' => inside = true,
            '>' => {
                inside = false;
                fixed.push('…');
            }
            _ if !inside => fixed.push(letter),
            _ => {}
        }
    }
    let pieces = fixed.split('…').map(|piece| piece.trim().to_owned());
    pieces.filter(|piece| piece.chars().count() >= SHORTEST).collect()
}

#[test]
fn every_message_of_the_troubleshooting_page_is_one_of_ours_or_of_a_known_other() {
    let sources = sources();
    let page = fs::read_to_string(workspace().join("docs/troubleshooting.md")).unwrap();
    let (mut looked, mut unknown) = (0, Vec::new());
    for row in page.lines().filter(|line| line.starts_with("| ")) {
        let first = row.trim_start_matches("| ").split(" | ").next().unwrap_or_default();
        // Only whole messages: a row that begins with plain words describes.
        let quoted = first.split('`').skip(1).step_by(2);
        for piece in quoted.filter(|_| first.contains('`')).flat_map(pieces) {
            looked += 1;
            if !sources.contains(&piece) && !OTHERS.contains(&piece.as_str()) && !is_a_name(&piece) {
                unknown.push(piece);
            }
        }
    }
    assert!(looked > 20, "only {looked} pieces were found on the page");
    assert!(unknown.is_empty(), "nobody says {unknown:#?}");
}

/// `Terminating`, `/readyz`, `OOMKilled`, `sops.ageKey.nodePath`: no message.
fn is_a_name(piece: &str) -> bool {
    !piece.contains(' ')
}

#[test]
fn pieces_of_messages() {
    assert_eq!(pieces("<key>: store …: too short"), [": store", ": too short"]);
    assert_eq!(pieces("could not …"), ["could not"]);
}
