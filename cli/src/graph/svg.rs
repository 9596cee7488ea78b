//! A graph as an SVG: layers from left to right, each node as far to the left as what it waits for allows.
//!
//! The usual steps of a layered drawing: an edge over several layers gets a point in each of them, the nodes of a layer are
//! ordered by where their neighbours are (some sweeps in both directions), and are then moved towards their neighbours as
//! far as the order and the distances allow.

use std::fmt::Write;

use baton_protocol::run::StageStatus;

use super::{Graph, Node};

/// Half of a node's height.
const HALF: f64 = 19.0;
/// Between two nodes of a layer.
const GAP: f64 = 12.0;
/// Between a point of a long edge and what is beside it.
const POINT_GAP: f64 = 8.0;
/// Between two layers, where the edges are.
const BETWEEN: f64 = 56.0;
const MARGIN: f64 = 20.0;
/// Room for the title and the legend.
const HEAD: f64 = 56.0;
/// The width of a character.
const CHARACTER: f64 = 7.3;
/// How often the order is improved, and how often the places are.
const SWEEPS: usize = 8;
/// With more points than this in long edges, these are drawn without: they cost more than they help.
const MAX_POINTS: usize = 30_000;

/// Draws a graph. Names are tokens of lower-case letters, digits, `_` and `-`, so nothing has to be escaped.
pub(crate) fn draw(graph: &Graph) -> String {
    let layout = Layout::new(graph);
    let (width, height) = layout.size();
    let mut svg = String::new();
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" viewBox=\"0 0 {width:.0} \
         {height:.0}\" role=\"img\">\n<title>{}</title>\n<style>{STYLE}</style>",
        graph.title
    );
    let _ = writeln!(svg, "<text class=\"title\" x=\"{MARGIN}\" y=\"28\">{}</text>", graph.title);
    legend(&mut svg, graph);
    for path in layout.edges(graph) {
        let _ = writeln!(svg, "<path d=\"{path}\"/>");
    }
    for (at, node) in graph.nodes.iter().enumerate() {
        let (x, y) = layout.corner(at);
        draw_node(&mut svg, node, x, y, node_width(node));
    }
    svg.push_str("</svg>\n");
    svg
}

const STYLE: &str = "\
svg{background:#fff}text{font:12px ui-monospace,monospace;fill:#1d2430}\
.title{font-size:15px;font-weight:bold}.faint{fill:#6b7585}\
path{fill:none;stroke:#9aa4b2;stroke-width:1.2}\
rect{fill:#f3f5f8;stroke:#9aa4b2}rect.optional{stroke-dasharray:4 3}\
rect.succeeded{fill:#d8f0dd;stroke:#2e8b45}rect.failed{fill:#f9d9d7;stroke:#c0392b}\
rect.running{fill:#fdeebf;stroke:#b8860b}rect.ready,rect.waiting{fill:#dceafb;stroke:#3573b9}\
rect.cancelled,rect.skipped{fill:#e6e6e6;stroke:#777}\
@media(prefers-color-scheme:dark){svg{background:#14181f}text{fill:#e4e8ee}.faint{fill:#95a0b0}\
path{stroke:#596577}rect{fill:#222934;stroke:#596577}rect.succeeded{fill:#1c3d26;stroke:#4cb26a}\
rect.failed{fill:#4a201d;stroke:#e0675b}rect.running{fill:#463a12;stroke:#d9ac3a}\
rect.ready,rect.waiting{fill:#1d3350;stroke:#5c9be0}rect.cancelled,rect.skipped{fill:#333;stroke:#888}}";

fn draw_node(svg: &mut String, node: &Node, x: f64, y: f64, width: f64) {
    let state = node.state().map(StageStatus::as_str).unwrap_or_default();
    let class = format!("{state}{}", if node.optional { " optional" } else { "" });
    let _ = writeln!(
        svg,
        "<g><title>{}</title><rect class=\"{}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{:.1}\" rx=\"5\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\">{}</text><text class=\"faint\" x=\"{:.1}\" y=\"{:.1}\">{}</text></g>",
        node.label,
        class.trim(),
        2.0 * HALF,
        x + 8.0,
        y + 16.0,
        node.label,
        x + 8.0,
        y + 31.0,
        second_line(node),
    );
}

/// What stands below a node's name.
fn second_line(node: &Node) -> String {
    let says = node.says();
    if node.stages > 1 && !says.is_empty() {
        return says;
    }
    let optional = if node.optional { ", optional" } else { "" };
    if says.is_empty() { format!("{}{optional}", node.agents) } else { format!("{}: {says}{optional}", node.agents) }
}

fn node_width(node: &Node) -> f64 {
    let characters = node.label.chars().count().max(second_line(node).chars().count());
    (characters as f64 * CHARACTER + 16.0).max(70.0)
}

/// Says which colour is which state, where there are states.
fn legend(svg: &mut String, graph: &Graph) {
    let mut states: Vec<StageStatus> = graph.nodes.iter().flat_map(|node| node.states.keys().copied()).collect();
    states.sort_unstable();
    states.dedup();
    let mut x = MARGIN;
    for state in states {
        let _ = writeln!(
            svg,
            "<rect class=\"{state}\" x=\"{x:.1}\" y=\"36\" width=\"12\" height=\"12\" rx=\"3\"/>\
             <text class=\"faint\" x=\"{:.1}\" y=\"46\">{state}</text>",
            x + 18.0
        );
        x += 34.0 + state.as_str().len() as f64 * CHARACTER;
    }
}

/// A node, or a point of an edge that passes a layer.
#[derive(Debug, Clone, Default)]
struct Item {
    layer: usize,
    /// None: it is a point.
    node: Option<usize>,
    left: Vec<usize>,
    right: Vec<usize>,
    y: f64,
}

impl Item {
    /// How far from its middle others must stay.
    fn half(&self) -> f64 {
        if self.node.is_some() { HALF + GAP / 2.0 } else { POINT_GAP / 2.0 }
    }
}

/// Where everything is.
struct Layout {
    /// The graph's nodes come first, at their own places.
    items: Vec<Item>,
    layers: Vec<Vec<usize>>,
    /// Where each layer begins, and how wide it is.
    columns: Vec<(f64, f64)>,
    /// The points that each edge passes, by parent and child.
    paths: Vec<(usize, usize, Vec<usize>)>,
}

impl Layout {
    fn new(graph: &Graph) -> Self {
        let mut items: Vec<Item> = graph
            .nodes
            .iter()
            .enumerate()
            .map(|(at, node)| Item { layer: node.depth, node: Some(at), ..Item::default() })
            .collect();
        let edges =
            || graph.order.iter().flat_map(|&child| graph.nodes[child].parents.iter().map(move |&p| (p, child)));
        let spans = |(parent, child): (usize, usize)| graph.nodes[child].depth - graph.nodes[parent].depth - 1;
        let with_points = edges().map(spans).sum::<usize>() <= MAX_POINTS;
        let mut paths = Vec::new();
        for (parent, child) in edges() {
            let first = items.len();
            let points = if with_points { spans((parent, child)) } else { 0 };
            items.extend((0..points).map(|i| Item { layer: graph.nodes[parent].depth + 1 + i, ..Item::default() }));
            let passed: Vec<usize> = (first..items.len()).collect();
            let whole: Vec<usize> = std::iter::once(parent).chain(passed.iter().copied()).chain([child]).collect();
            for pair in whole.windows(2) {
                items[pair[0]].right.push(pair[1]);
                items[pair[1]].left.push(pair[0]);
            }
            paths.push((parent, child, passed));
        }
        let depth = items.iter().map(|item| item.layer + 1).max().unwrap_or(0);
        let mut layers = vec![Vec::new(); depth];
        for &at in graph.order.iter().chain(&(graph.nodes.len()..items.len()).collect::<Vec<_>>()) {
            layers[items[at].layer].push(at);
        }
        let mut columns = Vec::new();
        let mut x = MARGIN;
        for layer in &layers {
            let widths = layer.iter().filter_map(|&at| items[at].node).map(|node| node_width(&graph.nodes[node]));
            let width = widths.fold(0.0, f64::max);
            columns.push((x, width));
            x += width + BETWEEN;
        }
        let mut layout = Self { items, layers, columns, paths };
        layout.order();
        layout.place();
        layout
    }

    /// Orders each layer by where the neighbours of its items are in theirs.
    fn order(&mut self) {
        let mut ranks = vec![0.0; self.items.len()];
        let number = |layer: &[usize], ranks: &mut Vec<f64>| {
            layer.iter().enumerate().for_each(|(rank, &at)| ranks[at] = rank as f64);
        };
        self.layers.iter().for_each(|layer| number(layer, &mut ranks));
        for sweep in 0..2 * SWEEPS {
            let rightwards = sweep % 2 == 0;
            let count = self.layers.len();
            for step in 0..count {
                let layer = &mut self.layers[if rightwards { step } else { count - 1 - step }];
                let wanted = |at: usize| {
                    let item = &self.items[at];
                    mean(if rightwards { &item.left } else { &item.right }, &ranks).unwrap_or(ranks[at])
                };
                let mut keyed: Vec<(f64, usize)> = layer.iter().map(|&at| (wanted(at), at)).collect();
                keyed.sort_by(|a, b| a.0.total_cmp(&b.0));
                *layer = keyed.into_iter().map(|(_, at)| at).collect();
                number(layer, &mut ranks);
            }
        }
    }

    /// Moves items towards their neighbours, in the order that they have.
    fn place(&mut self) {
        let mut ys = vec![0.0; self.items.len()];
        for layer in &self.layers {
            let mut y = 0.0;
            for &at in layer {
                y += self.items[at].half();
                ys[at] = y;
                y += self.items[at].half();
            }
            // In the middle, to begin with.
            layer.iter().for_each(|&at| ys[at] -= y / 2.0);
        }
        for sweep in 0..2 * SWEEPS {
            let count = self.layers.len();
            for step in 0..count {
                let layer = &self.layers[if sweep % 2 == 0 { step } else { count - 1 - step }];
                let wanted = layer.iter().map(|&at| {
                    let item = &self.items[at];
                    let both: Vec<usize> = item.left.iter().chain(&item.right).copied().collect();
                    mean(&both, &ys).unwrap_or(ys[at])
                });
                let halves: Vec<f64> = layer.iter().map(|&at| self.items[at].half()).collect();
                let placed = apart(&wanted.collect::<Vec<_>>(), &halves);
                layer.iter().zip(placed).for_each(|(&at, y)| ys[at] = y);
            }
        }
        let top = self.items.iter().zip(&ys).map(|(item, y)| y - item.half()).fold(f64::INFINITY, f64::min);
        for (item, y) in self.items.iter_mut().zip(ys) {
            item.y = y - top + HEAD;
        }
    }

    fn size(&self) -> (f64, f64) {
        let right = self.columns.last().map_or(0.0, |(x, width)| x + width);
        let bottom = self.items.iter().map(|item| item.y + item.half()).fold(HEAD, f64::max);
        ((right + MARGIN).max(320.0), bottom + MARGIN)
    }

    /// The upper left corner of a node.
    fn corner(&self, node: usize) -> (f64, f64) {
        let item = &self.items[node];
        (self.columns[item.layer].0, item.y - HALF)
    }

    /// The edges' paths.
    fn edges<'a>(&'a self, graph: &'a Graph) -> impl Iterator<Item = String> + 'a {
        self.paths.iter().map(|(parent, child, passed)| {
            let (x, y) = (self.columns[self.items[*parent].layer].0, self.items[*parent].y);
            let x = x + node_width(&graph.nodes[*parent]);
            let mut path = format!("M{x:.1} {y:.1}");
            // From the node to the end of its layer, straight.
            let (left, width) = self.columns[self.items[*parent].layer];
            let (mut x, mut y) = (left + width, y);
            let _ = write!(path, "H{x:.1}");
            for &at in passed.iter().chain([child]) {
                let item = &self.items[at];
                let (left, width) = self.columns[item.layer];
                let middle = (x + left) / 2.0;
                let _ = write!(path, "C{middle:.1} {y:.1} {middle:.1} {:.1} {left:.1} {:.1}", item.y, item.y);
                (x, y) = (left, item.y);
                if item.node.is_none() {
                    x += width;
                    let _ = write!(path, "H{x:.1}");
                }
            }
            path
        })
    }
}

fn mean(places: &[usize], values: &[f64]) -> Option<f64> {
    let sum: f64 = places.iter().map(|&at| values[at]).sum();
    (!places.is_empty()).then(|| sum / places.len() as f64)
}

/// Puts things as near as possible (by least squares) to where they would like to be, in their order and so far apart that
/// they do not touch: isotonic regression, by pooling neighbours that would overlap.
fn apart(wanted: &[f64], halves: &[f64]) -> Vec<f64> {
    let mut offsets = Vec::with_capacity(wanted.len());
    let mut offset = 0.0;
    for (at, half) in halves.iter().enumerate() {
        offset += if at == 0 { 0.0 } else { halves[at - 1] + half };
        offsets.push(offset);
    }
    // Pools of neighbours: the sum of what they want, and how many they are.
    let mut pools: Vec<(f64, usize)> = Vec::new();
    for (wanted, offset) in wanted.iter().zip(&offsets) {
        let mut pool = (wanted - offset, 1);
        while let Some((sum, count)) = pools.last().copied()
            && sum / count as f64 >= pool.0 / pool.1 as f64
        {
            pool = (pool.0 + sum, pool.1 + count);
            pools.pop();
        }
        pools.push(pool);
    }
    let bases = pools.into_iter().flat_map(|(sum, count)| std::iter::repeat_n(sum / count as f64, count));
    bases.zip(offsets).map(|(base, offset)| base + offset).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::graph;
    use super::*;

    #[test]
    fn c2_things_stay_apart_in_their_order_and_near_to_where_they_want() {
        assert_eq!(apart(&[0.0, 0.0, 50.0], &[5.0, 5.0, 5.0]), [-5.0, 5.0, 50.0]);
        assert_eq!(apart(&[10.0, 0.0], &[1.0, 2.0]), [3.5, 6.5]);
        assert!(apart(&[], &[]).is_empty());
    }

    #[test]
    fn c2_no_two_nodes_of_a_drawing_overlap_and_edges_lead_to_the_right() {
        let mut text = "root:\nlong: root\n".to_owned();
        for i in 0..40 {
            text.push_str(&format!("a{i}: root\nb{i}: a{i} a{}\n", (i * 7 + 1) % 40));
        }
        text.push_str("end: long b0 b7 b39 a3\n");
        let graph = graph(&text);
        let layout = Layout::new(&graph);
        let boxes: Vec<_> =
            (0..graph.nodes.len()).map(|at| (layout.corner(at), node_width(&graph.nodes[at]))).collect();
        for (at, ((x, y), width)) in boxes.iter().enumerate() {
            for ((other_x, other_y), other_width) in &boxes[at + 1..] {
                let apart = x + width <= *other_x || other_x + other_width <= *x || (y - other_y).abs() >= 2.0 * HALF;
                assert!(apart, "{at}: {x} {y} {width} and {other_x} {other_y} {other_width}");
            }
        }
        for (parent, child, _) in &layout.paths {
            assert!(layout.corner(*parent).0 + node_width(&graph.nodes[*parent]) < layout.corner(*child).0);
        }
        let (width, height) = layout.size();
        assert!(boxes.iter().all(|((x, y), w)| *x >= 0.0 && *y >= 0.0 && x + w <= width && y + 2.0 * HALF <= height));
        let svg = draw(&graph);
        assert_eq!(svg.matches("<path").count(), layout.paths.len());
        assert_eq!(svg.matches("<rect").count(), graph.nodes.len());
    }
}
