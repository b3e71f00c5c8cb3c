//! Where in a document a walk is: what a value there is bound to, and whether it is encrypted.

use super::selection::Selection;

/// Characters of a place's name in a message.
const SHOWN: usize = 240;

/// The keys from the top to here. What depends on them is carried along, so that a value costs no more for being deep.
pub(super) struct Place<'a> {
    selection: &'a Selection,
    steps: Vec<Step>,
    /// Each key with a colon after it; a list adds nothing.
    additional: String,
}

struct Step {
    /// Length of the additional data up to here.
    before: usize,
    /// Whether this key or one above it matches the file's rule.
    matched: bool,
}

impl<'a> Place<'a> {
    pub(super) fn top(selection: &'a Selection) -> Self {
        Self { selection, steps: Vec::new(), additional: String::new() }
    }

    /// What is done below `key`.
    pub(super) fn enter(&mut self, key: &str) {
        let matched = self.matched() || self.selection.matches(key);
        self.steps.push(Step { before: self.additional.len(), matched });
        self.additional.push_str(key);
        self.additional.push(':');
    }

    /// Back to where it was before the last `enter`.
    pub(super) fn leave(&mut self) {
        if let Some(step) = self.steps.pop() {
            self.additional.truncate(step.before);
        }
    }

    /// Whether values here are encrypted.
    pub(super) fn is_encrypted(&self) -> bool {
        self.selection.encrypts(self.matched())
    }

    /// The additional data of values here.
    pub(super) fn additional(&self) -> &str {
        &self.additional
    }

    /// For messages: the keys with colons between them, as one line that a terminal can show; of a long one the end,
    /// which is where the trouble is.
    pub(super) fn name(&self) -> String {
        let name = self.additional.strip_suffix(':').unwrap_or_default();
        let over = name.chars().count().saturating_sub(SHOWN);
        let start = if over > 0 { "…" } else { "" };
        let readable = name.chars().skip(over).map(|c| if c.is_control() { '\u{fffd}' } else { c });
        start.chars().chain(readable).collect()
    }

    fn matched(&self) -> bool {
        self.steps.last().is_some_and(|step| step.matched)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_decides_for_all_below_it_and_for_nothing_beside_it() {
        let selection = Selection::default();
        let mut place = Place::top(&selection);
        place.enter("a_unencrypted");
        place.enter("b");
        assert_eq!((place.additional(), place.is_encrypted()), ("a_unencrypted:b:", false));
        assert_eq!(place.name(), "a_unencrypted:b");
        place.leave();
        place.leave();
        place.enter("c");
        assert_eq!((place.additional(), place.is_encrypted()), ("c:", true));
        place.leave();
        assert_eq!((place.additional(), place.is_encrypted()), ("", true));
    }

    #[test]
    fn a_name_is_one_readable_line_of_bounded_length() {
        let selection = Selection::default();
        let mut place = Place::top(&selection);
        place.enter("pass\u{7f}\u{85}\tword");
        assert_eq!(place.name(), "pass\u{fffd}\u{fffd}\u{fffd}word");
        assert_eq!(place.additional(), "pass\u{7f}\u{85}\tword:", "what is authenticated stays as it is");
        place.enter(&"k".repeat(1_000));
        place.enter("end");
        assert_eq!(place.name().chars().count(), SHOWN + 1);
        assert!(place.name().starts_with('…') && place.name().ends_with("k:end"), "{}", place.name());
    }
}
