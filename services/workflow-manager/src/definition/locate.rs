//! Where in its text a part of a definition is.
//!
//! Only a definition that is wrong is looked through like this, so it may be read once more. JSON is read as the YAML that
//! it also is.

use std::fmt;

use baton_protocol::definition::Step;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Options, Spanned};

/// Line and column, from 1, of the part at the end of a path, or of the nearest part around it that is written down.
pub(super) fn locate(text: &str, path: &[Step], options: Options) -> Option<(u64, u64)> {
    let whole: Spanned<Node> = serde_saphyr::from_str_with_options(text, options).ok()?;
    let mut part = &whole;
    for step in path {
        let inner = match (&part.value, step) {
            (Node::Map(members), Step::Key(key)) => members.iter().find(|(name, _)| name == key).map(|(_, node)| node),
            (Node::List(items), Step::Index(index)) => items.get(*index),
            _ => None,
        };
        let Some(inner) = inner else { break };
        part = inner;
    }
    let (line, column) = (part.referenced.line(), part.referenced.column());
    (line > 0).then_some((line, column))
}

/// A text by its structure alone.
enum Node {
    Map(Vec<(String, Spanned<Node>)>),
    List(Vec<Spanned<Node>>),
    Leaf,
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Node::Map(members))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Node::List(items))
            }

            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
                Node::deserialize(deserializer)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_str<E>(self, _: &str) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_none<E>(self) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
        }

        deserializer.deserialize_any(Reader)
    }
}
