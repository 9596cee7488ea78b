//! A graph on a terminal: a line a node, and lanes beside it that lead from each node to those that wait for it.
//!
//! ```text
//! ●    research
//! ├─╮
//! ● │  analysis
//! │ ●  figures
//! ├─╯
//! ●    writing
//! ```

use baton_protocol::run::StageStatus;

use super::{Graph, Node};
use crate::style::{Style, Tone};
use crate::text::short;

/// How many characters what stands beside the lanes needs at least.
const BESIDE: usize = 40;

/// Draws a graph that many columns wide. One whose lanes have no room is told as a list, layer by layer.
pub(crate) fn draw(graph: &Graph, width: usize, style: Style) -> String {
    let most = width.saturating_sub(BESIDE).max(BESIDE / 2) / 2;
    lanes(graph, most, style).unwrap_or_else(|| layers(graph, style))
}

/// The graph with its lanes; none if it takes more than that many of them.
fn lanes(graph: &Graph, most: usize, style: Style) -> Option<String> {
    let mut lanes = Lanes::default();
    let mut rows = Vec::new();
    for &at in &graph.order {
        let place = lanes.take(at);
        let glyphs = lanes.row(place);
        let below = lanes.leave(place, &graph.nodes[at].children);
        if lanes.0.len() > most {
            return None;
        }
        rows.push((glyphs, Some(at)));
        rows.extend(below.map(|below| (below, None)));
    }
    let wide = rows.iter().map(|(glyphs, _)| glyphs.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (glyphs, node) in rows {
        match node {
            None => text.push_str(&glyphs),
            Some(node) => {
                let node = &graph.nodes[node];
                let gap = " ".repeat(wide - glyphs.chars().count() + 2);
                let (mark, tone) = mark(node);
                text.push_str(&glyphs.replace(NODE, &style.tone(tone, mark)));
                text.push_str(&format!("{gap}{}", beside(node, style)));
            }
        }
        text.push('\n');
    }
    Some(text)
}

/// What stands for a node until its state is drawn.
const NODE: char = '\u{0}';

/// The lanes, each with the node that it leads to.
#[derive(Debug, Default)]
struct Lanes(Vec<Option<usize>>);

impl Lanes {
    /// The place of a node: its lane, or a new one. The lane ends there.
    fn take(&mut self, node: usize) -> usize {
        let place = self.to(node).unwrap_or_else(|| self.free(0));
        self.0[place] = None;
        place
    }

    fn to(&self, node: usize) -> Option<usize> {
        self.0.iter().position(|lane| *lane == Some(node))
    }

    /// The free lane that is nearest.
    fn free(&mut self, near: usize) -> usize {
        let free = (0..self.0.len()).filter(|&lane| self.0[lane].is_none()).min_by_key(|lane| lane.abs_diff(near));
        free.unwrap_or_else(|| {
            self.0.push(None);
            self.0.len() - 1
        })
    }

    fn row(&self, node: usize) -> String {
        let mut row = String::new();
        for (place, lane) in self.0.iter().enumerate() {
            row.push(if place == node {
                NODE
            } else if lane.is_some() {
                '│'
            } else {
                ' '
            });
            row.push(' ');
        }
        row.trim_end_matches(' ').to_owned()
    }

    /// Leads lanes from a node to its children. The line that shows it, unless they go straight down.
    fn leave(&mut self, from: usize, children: &[usize]) -> Option<String> {
        let mut above: Vec<bool> = self.0.iter().map(Option::is_some).collect();
        let mut targets = Vec::new();
        for &child in children {
            let lane = self.to(child).unwrap_or_else(|| self.free(from));
            self.0[lane] = Some(child);
            targets.push(lane);
        }
        let straight = targets.iter().all(|target| *target == from);
        above.resize(self.0.len(), false);
        above[from] = true;
        let low = targets.iter().copied().fold(from, usize::min);
        let high = targets.iter().copied().fold(from, usize::max);
        let mut row = String::new();
        for (place, above) in above.into_iter().enumerate() {
            let (left, right) = (low < place && place <= high, low <= place && place < high);
            let joins = place == from || targets.contains(&place);
            let below = self.0[place].is_some();
            row.push(match (above, below, left, right) {
                // A lane that has nothing to do with it: the line goes behind.
                (true, true, true, true) if !joins => '│',
                lines => corner(lines),
            });
            row.push(if right { '─' } else { ' ' });
        }
        while self.0.last().is_some_and(Option::is_none) {
            self.0.pop();
        }
        (!straight).then(|| row.trim_end().to_owned())
    }
}

/// The character with lines upwards, downwards, to the left and to the right.
fn corner(lines: (bool, bool, bool, bool)) -> char {
    match lines {
        (false, false, false, false) => ' ',
        (true, false, false, false) | (false, true, false, false) | (true, true, false, false) => '│',
        (false, false, _, _) => '─',
        (true, false, true, false) => '╯',
        (true, false, false, true) => '╰',
        (false, true, true, false) => '╮',
        (false, true, false, true) => '╭',
        (true, true, true, false) => '┤',
        (true, true, false, true) => '├',
        (true, false, true, true) => '┴',
        (false, true, true, true) => '┬',
        (true, true, true, true) => '┼',
    }
}

/// The graph as a list, where there is no room for lanes.
fn layers(graph: &Graph, style: Style) -> String {
    let mut places = graph.order.clone();
    places.sort_by_key(|&place| graph.nodes[place].depth);
    let mut text = String::new();
    let mut last = None;
    for place in places {
        let node = &graph.nodes[place];
        if last.replace(node.depth) != Some(node.depth) {
            text.push_str(&style.dim(&format!("layer {}\n", node.depth + 1)));
        }
        let (mark, tone) = mark(node);
        let after: Vec<_> = node.parents.iter().map(|&parent| graph.nodes[parent].label.as_str()).collect();
        let after = if after.is_empty() { String::new() } else { format!(" after {}", short(&after.join(", "), 120)) };
        text.push_str(&format!("  {} {}{}\n", style.tone(tone, mark), beside(node, style), style.dim(&after)));
    }
    text
}

fn beside(node: &Node, style: Style) -> String {
    let mut text = style.bold(&node.label);
    if node.label != node.agents && node.stages == 1 {
        text.push_str(&style.dim(&format!("  {}", node.agents)));
    }
    if node.optional {
        text.push_str(&style.dim("  optional"));
    }
    let says = node.says();
    if !says.is_empty() {
        text.push_str(&format!("  {}", style.tone(mark(node).1, &says)));
    }
    text
}

/// How a state looks, without colour and with.
fn mark(node: &Node) -> (&'static str, Tone) {
    let Some(state) = node.state() else { return ("●", Tone::Plain) };
    let mark = match state {
        StageStatus::Succeeded => "●",
        StageStatus::Failed => "✗",
        StageStatus::Running => "◐",
        StageStatus::Waiting => "◔",
        StageStatus::Cancelled => "⊘",
        StageStatus::Skipped => "⊖",
        _ => "○",
    };
    (mark, Tone::of(state.as_str()))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::super::tests::graph;
    use super::*;

    fn check(text: &str, expected: &Expect) {
        expected.assert_eq(&draw(&graph(text), 80, Style::plain()));
    }

    #[test]
    fn c2_a_graph_is_drawn_with_lanes() {
        check(
            "a:\nb: a\nc: b\n",
            &expect![[r#"
            ●  a
            ●  b
            ●  c
        "#]],
        );
        check(
            "research:\nanalysis: research\nfigures: research\nwriting: analysis figures\n",
            &expect![[r#"
            ●    research
            ├─╮
            ● │  analysis
            │ ●  figures
            ├─╯
            ●    writing
        "#]],
        );
        check(
            "a:\nb: a\nc: a\nd: a\ne: b d\nf: c e\ng:\nh: g f\n",
            &expect![[r#"
            ●      a
            ├─┬─╮
            ● │ │  b
            │ ● │  c
            │ │ ●  d
            ├─│─╯
            ● │    e
            ╰─┤
              ●    f
            ● │    g
            ╰─┤
              ●    h
        "#]],
        );
        // A cross: each of two waits for both.
        check(
            "a:\nb:\nc: a b\nd: a b\n",
            &expect![[r#"
            ●      a
            ├─╮
            │ │ ●  b
            ├─┼─╯
            ● │    c
              ●    d
        "#]],
        );
    }

    #[test]
    fn c2_what_has_no_room_for_lanes_is_told_as_a_list() {
        let mut text = "root:\n".to_owned();
        for i in 0..30 {
            text.push_str(&format!("s{i}: root\n"));
        }
        let drawn = draw(&graph(&text), 80, Style::plain());
        assert!(drawn.starts_with("layer 1\n  ● root\nlayer 2\n  ● s0  s after root\n"), "{drawn}");
        expect![[r#"
            ●  root
            ●  s ×30
        "#]]
        .assert_eq(&draw(&graph(&text).folded(), 80, Style::plain()));
    }
}
