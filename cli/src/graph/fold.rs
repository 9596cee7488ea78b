//! Which nodes of a graph stand at the same place.

use std::collections::{BTreeMap, BTreeSet};

use super::Node;

/// Tells of each node which class it is in, and how many classes there are. Nodes are in one class if they have the same
/// agents and depth, and have nodes of the same classes before and after them, however many of each: the coarsest
/// partition of which that is true, by refinement.
pub(super) fn classes(nodes: &[Node]) -> (Vec<usize>, usize) {
    let kinds = nodes.iter().map(|node| (node.agents.as_str(), node.depth, node.optional));
    let (mut classes, mut count) = number(kinds);
    loop {
        let finer = nodes.iter().zip(&classes).map(|(node, class)| {
            let of = |others: &[usize]| others.iter().map(|&other| classes[other]).collect::<BTreeSet<_>>();
            (*class, of(&node.parents), of(&node.children))
        });
        let (finer, more) = number(finer);
        if more == count {
            return (classes, count);
        }
        (classes, count) = (finer, more);
    }
}

/// Numbers things in the order of their first appearance; equal ones get the same number.
fn number<T: Ord>(things: impl Iterator<Item = T>) -> (Vec<usize>, usize) {
    let mut known = BTreeMap::new();
    let numbers = things.map(|thing| {
        let next = known.len();
        *known.entry(thing).or_insert(next)
    });
    let numbers: Vec<usize> = numbers.collect();
    let count = numbers.iter().max().map_or(0, |most| most + 1);
    (numbers, count)
}
