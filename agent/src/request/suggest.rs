//! The nearest known word to one that is not known.

/// The candidate nearest to `word`, if it is near enough to be what was meant: at most one slip in three letters,
/// and never more than three.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A long word is no slip of anything, and must not cost a square of its length.
    if word.len() > 256 {
        return None;
    }
    candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(slips, candidate)| *slips <= 3.min(candidate.chars().count().div_ceil(3)))
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, candidate)| candidate)
}

/// How many letters have to be inserted, removed, replaced, or swapped with their neighbour to come from one word
/// to the other (Damerau's distance, each place touched once).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let width = to.len() + 1;
    let mut before_last: Vec<usize> = vec![0; width];
    let mut last: Vec<usize> = (0..width).collect();
    let mut previous_letter = None;
    for (row, letter) in from.chars().enumerate() {
        let mut current = Vec::with_capacity(width);
        current.push(row + 1);
        let mut previous_target = None;
        // Walks the row together with the rows above it: (above left, above) and (two up and two left).
        let above = last.iter().zip(last.iter().skip(1));
        let two_up = std::iter::once(None).chain(before_last.iter().map(Some));
        for ((&target, (&above_left, &above)), two_up) in to.iter().zip(above).zip(two_up) {
            let left = current.last().copied().unwrap_or(row + 1);
            let mut best = (above_left + usize::from(letter != target)).min(above + 1).min(left + 1);
            if let (Some(&two_up), true) =
                (two_up, previous_target == Some(letter) && previous_letter == Some(target))
            {
                best = best.min(two_up + 1);
            }
            current.push(best);
            previous_target = Some(target);
        }
        previous_letter = Some(letter);
        before_last = std::mem::replace(&mut last, current);
    }
    last.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (from, to, slips) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("refresh", "refresh", 0),
            ("refesh", "refresh", 1),
            ("refrehs", "refresh", 1),
            ("erfresh", "refresh", 1),
            ("countersing", "countersign", 1),
            ("kitten", "sitting", 3),
            ("größe", "grösse", 2),
            ("ab", "ba", 1),
            ("abcd", "badc", 2),
        ] {
            assert_eq!(distance(from, to), slips, "{from} {to}");
            assert_eq!(distance(to, from), slips, "{to} {from}");
        }
    }

    #[test]
    fn far_words_suggest_nothing() {
        assert_eq!(nearest("x", ["vault", "sops"]), None);
        assert_eq!(nearest("valut", ["vault", "sops"]), Some("vault"));
        assert_eq!(nearest("sosp", ["vault", "sops"]), Some("sops"));
        assert_eq!(nearest(&"v".repeat(5000), ["vault"]), None);
    }
}
