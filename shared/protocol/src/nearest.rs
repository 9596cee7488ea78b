//! The name that was probably meant.

/// The one of the right names that is nearest to a wrong one, if one is near: the fewest letters changed, added or taken
/// away, at most about a third of them. To one or two letters none is near.
///
/// ```
/// # use baton_protocol::nearest::nearest;
/// assert_eq!(nearest("depend_on", ["name", "depends_on"]), Some("depends_on"));
/// assert_eq!(nearest("colour", ["name", "depends_on"]), None);
/// ```
pub fn nearest<'a>(wrong: &str, right: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wrong: Vec<char> = wrong.chars().take(MAX).collect();
    let most = if wrong.len() < 3 { 0 } else { (wrong.len() + 1) / 3 };
    let near = right.into_iter().map(|name| (distance(&wrong, name), name));
    near.filter(|(distance, _)| *distance <= most).min_by_key(|(distance, _)| *distance).map(|(_, name)| name)
}

/// Longer names than this are compared by their beginnings.
const MAX: usize = 64;

/// How many letters must be changed, added or taken away to make one of the other (Levenshtein's distance).
fn distance(one: &[char], other: &str) -> usize {
    let mut row: Vec<usize> = (0..=one.len()).collect();
    for (i, letter) in other.chars().take(MAX).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, own) in one.iter().enumerate() {
            let changed = diagonal + usize::from(*own != letter);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[one.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_near_is_found_and_what_is_far_is_not() {
        for (wrong, right) in
            [("rety", Some("retry")), ("agenttype", Some("agent_type")), ("wrods", None), ("x", None), ("", None)]
        {
            assert_eq!(nearest(wrong, ["name", "agent_type", "retry", "y"]), right, "{wrong}");
        }
        assert_eq!(distance(&['a', 'b'], "ba"), 2);
        assert_eq!(distance(&[], "abc"), 3);
    }
}
