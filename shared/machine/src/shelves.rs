//! Ordered maps and sets whose clone is cheap.
//!
//! A snapshot clones a machine while the service must go on. A [`Shelves`] keeps its entries on *shelves*: short sorted
//! runs of entries, which a clone shares. Whoever changes an entry copies its shelf first, if it is shared. So a clone
//! costs a pointer for each shelf, and what it saves is paid later, a shelf at a time, by those that are changed while
//! the clone lives. Values that are large belong into an [`Arc`] of their own: see [`Shelves::change`].
//!
//! The order is that of the keys, as in a `BTreeMap`.

use std::borrow::Borrow;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

/// A shelf is about this large at the most, in bytes: what has to be moved to make or close a gap in it.
const SHELF_BYTES: usize = 2048;

/// An ordered map whose clone is cheap.
#[derive(Clone)]
pub struct Shelves<K, V> {
    /// For each shelf a key that none on it is less than, and that all on those before it are less than. The first one
    /// counts as less than any key.
    from: Vec<K>,
    /// Sorted; none is empty.
    shelves: Vec<Arc<Vec<(K, V)>>>,
    len: usize,
}

impl<K, V> Default for Shelves<K, V> {
    fn default() -> Self {
        Self { from: Vec::new(), shelves: Vec::new(), len: 0 }
    }
}

impl<K, V> Shelves<K, V> {
    /// How many entries a shelf has at the most.
    const MOST: usize = match SHELF_BYTES.checked_div(size_of::<(K, V)>()) {
        Some(most @ 16..=64) => most,
        Some(0..16) => 16,
        Some(_) | None => 64,
    };

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All entries in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> + Clone {
        self.shelves.iter().flat_map(|shelf| shelf.iter().map(|(key, value)| (key, value)))
    }

    /// All keys in order.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> + Clone {
        self.iter().map(|(key, _)| key)
    }

    /// All values in the order of their keys.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> + Clone {
        self.iter().map(|(_, value)| value)
    }

    /// The entry with the least key.
    #[must_use]
    pub fn first(&self) -> Option<(&K, &V)> {
        self.shelves.first()?.first().map(|(key, value)| (key, value))
    }
}

impl<K: Ord + Clone, V: Clone> Shelves<K, V> {
    /// On which shelf a key is, if it is anywhere.
    fn shelf<Q: Ord + ?Sized>(&self, key: &Q) -> usize
    where
        K: Borrow<Q>,
    {
        self.from.partition_point(|from| from.borrow() <= key).saturating_sub(1)
    }

    /// On which shelf a key is and where, or where on which shelf it would have to be.
    fn find<Q: Ord + ?Sized>(&self, key: &Q) -> (usize, Result<usize, usize>)
    where
        K: Borrow<Q>,
    {
        let at = self.shelf(key);
        let place = self.shelves.get(at).map_or(Err(0), |shelf| shelf.binary_search_by(|(k, _)| k.borrow().cmp(key)));
        (at, place)
    }

    /// The value of a key.
    #[must_use]
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let (at, place) = self.find(key);
        Some(&self.shelves.get(at)?[place.ok()?].1)
    }

    /// The value of a key, to be changed.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let (at, place) = self.find(key);
        let place = place.ok()?;
        Some(&mut Arc::make_mut(self.shelves.get_mut(at)?)[place].1)
    }

    /// Whether there is a value of this key.
    #[must_use]
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.find(key).1.is_ok()
    }

    /// Gives a key a value; gives back what it had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let (at, place) = self.find(&key);
        match place {
            Ok(place) => {
                let entry = &mut Arc::make_mut(&mut self.shelves[at])[place];
                Some(std::mem::replace(&mut entry.1, value))
            }
            Err(place) => {
                self.put(at, place, key, value);
                None
            }
        }
    }

    /// The value of a key, to be changed; if it has none, this.
    pub fn get_or_insert_with(&mut self, key: &K, make: impl FnOnce() -> V) -> &mut V {
        let (at, place) = match self.find(key) {
            (at, Ok(place)) => (at, place),
            (at, Err(place)) => self.put(at, place, key.clone(), make()),
        };
        &mut Arc::make_mut(&mut self.shelves[at])[place].1
    }

    /// Takes a key out; gives back what it had.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let (at, place) = self.find(key);
        Some(self.take(at, place.ok()?).1)
    }

    /// Takes the entry with the least key out.
    pub fn pop_first(&mut self) -> Option<(K, V)> {
        (!self.is_empty()).then(|| self.take(0, 0))
    }

    /// The entries whose keys are less than this one.
    pub fn before<'a>(&'a self, key: &K) -> impl DoubleEndedIterator<Item = (&'a K, &'a V)> + use<'a, K, V> {
        let (at, place) = self.find(key);
        let place = place.unwrap_or_else(|place| place);
        let part = self.shelves.get(at).map_or(&[][..], |shelf| &shelf[..place]);
        self.shelves[..at].iter().flat_map(|shelf| shelf.iter()).chain(part).map(|(key, value)| (key, value))
    }

    /// Puts an entry where it belongs; gives where it is then.
    fn put(&mut self, at: usize, place: usize, key: K, value: V) -> (usize, usize) {
        self.len += 1;
        let Some(shelf) = self.shelves.get_mut(at) else {
            self.from.push(key.clone());
            self.shelves.push(Arc::new(vec![(key, value)]));
            return (0, 0);
        };
        if shelf.len() < Self::MOST {
            Arc::make_mut(shelf).insert(place, (key, value));
            return (at, place);
        }
        if place == shelf.len() {
            // Keys that only grow fill one shelf after another.
            self.from.insert(at + 1, key.clone());
            self.shelves.insert(at + 1, Arc::new(vec![(key, value)]));
            return (at + 1, 0);
        }
        let half = Self::MOST / 2;
        let shelf = Arc::make_mut(shelf);
        let upper = shelf.split_off(half);
        shelf.shrink_to_fit();
        self.from.insert(at + 1, upper[0].0.clone());
        self.shelves.insert(at + 1, Arc::new(upper));
        let (at, place) = if place > half { (at + 1, place - half) } else { (at, place) };
        Arc::make_mut(&mut self.shelves[at]).insert(place, (key, value));
        (at, place)
    }

    fn take(&mut self, at: usize, place: usize) -> (K, V) {
        self.len -= 1;
        let shelf = Arc::make_mut(&mut self.shelves[at]);
        let entry = shelf.remove(place);
        if shelf.is_empty() {
            self.from.remove(at);
            self.shelves.remove(at);
        } else if shelf.len() < Self::MOST / 4 {
            self.join(at);
            self.join(at.wrapping_sub(1));
        }
        entry
    }

    /// Puts a shelf together with the one after it, if both have little on them.
    fn join(&mut self, at: usize) {
        let next = at.wrapping_add(1);
        let few = |at: usize| self.shelves.get(at).is_some_and(|shelf| shelf.len() <= Self::MOST / 2);
        if few(at) && few(next) {
            self.from.remove(next);
            let mut upper = self.shelves.remove(next);
            Arc::make_mut(&mut self.shelves[at]).append(Arc::make_mut(&mut upper));
        }
    }
}

impl<K: Ord + Clone, V: Clone> Shelves<K, Arc<V>> {
    /// The value of a key, to be changed; it is copied first if a clone shares it.
    pub fn change<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.get_mut(key).map(Arc::make_mut)
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for Shelves<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut shelves = Self::default();
        for (key, value) in entries {
            shelves.insert(key, value);
        }
        shelves
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for Shelves<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl<K: Eq, V: Eq> Eq for Shelves<K, V> {}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Shelves<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Serialize, V: Serialize> Serialize for Shelves<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.len))?;
        for (key, value) in self.iter() {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl<'de, K: Ord + Clone + Deserialize<'de>, V: Clone + Deserialize<'de>> Deserialize<'de> for Shelves<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reads<K, V>(PhantomData<(K, V)>);
        impl<'de, K: Ord + Clone + Deserialize<'de>, V: Clone + Deserialize<'de>> Visitor<'de> for Reads<K, V> {
            type Value = Shelves<K, V>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut shelves = Shelves::default();
                while let Some((key, value)) = map.next_entry()? {
                    shelves.insert(key, value);
                }
                Ok(shelves)
            }
        }
        deserializer.deserialize_map(Reads(PhantomData))
    }
}

/// An ordered set whose clone is cheap.
#[derive(Clone, PartialEq, Eq)]
pub struct ShelfSet<K>(Shelves<K, ()>);

impl<K> Default for ShelfSet<K> {
    fn default() -> Self {
        Self(Shelves::default())
    }
}

impl<K: Ord + Clone> ShelfSet<K> {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts one in. Whether it was not there.
    pub fn insert(&mut self, key: K) -> bool {
        self.0.insert(key, ()).is_none()
    }

    /// Takes one out. Whether it was there.
    pub fn remove(&mut self, key: &K) -> bool {
        self.0.remove(key).is_some()
    }

    /// The least.
    #[must_use]
    pub fn first(&self) -> Option<&K> {
        self.0.first().map(|(key, ())| key)
    }

    /// Takes the least out.
    pub fn pop_first(&mut self) -> Option<K> {
        self.0.pop_first().map(|(key, ())| key)
    }

    /// All in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &K> + Clone {
        self.0.keys()
    }
}

impl<K: fmt::Debug> fmt::Debug for ShelfSet<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl<K: Serialize> Serialize for ShelfSet<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.keys())
    }
}

impl<'de, K: Ord + Clone + Deserialize<'de>> Deserialize<'de> for ShelfSet<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reads<K>(PhantomData<K>);
        impl<'de, K: Ord + Clone + Deserialize<'de>> Visitor<'de> for Reads<K> {
            type Value = ShelfSet<K>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut set = ShelfSet::default();
                while let Some(key) = seq.next_element()? {
                    set.insert(key);
                }
                Ok(set)
            }
        }
        deserializer.deserialize_seq(Reads(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Act {
        Insert(u16, u32),
        Remove(u16),
        Change(u16),
        OrInsert(u16),
        PopFirst,
        Snapshot,
    }

    fn act() -> impl Strategy<Value = Act> {
        let key = || 0u16..400;
        prop_oneof![
            8 => (key(), any::<u32>()).prop_map(|(key, value)| Act::Insert(key, value)),
            6 => key().prop_map(Act::Remove),
            2 => key().prop_map(Act::Change),
            2 => key().prop_map(Act::OrInsert),
            1 => Just(Act::PopFirst),
            1 => Just(Act::Snapshot),
        ]
    }

    /// What a shelf must be.
    fn check<K: Ord + Clone, V: Clone>(shelves: &Shelves<K, V>) {
        assert_eq!(shelves.from.len(), shelves.shelves.len());
        assert!(shelves.keys().is_sorted());
        assert_eq!(shelves.iter().count(), shelves.len());
        for (at, shelf) in shelves.shelves.iter().enumerate() {
            assert!(!shelf.is_empty() && shelf.len() <= Shelves::<K, V>::MOST);
            assert!(at == 0 || shelf.iter().all(|(key, _)| *key >= shelves.from[at]));
            assert!(shelves.from.get(at + 1).is_none_or(|from| shelf.iter().all(|(key, _)| key < from)));
        }
    }

    proptest! {
        #[test]
        fn they_are_what_a_tree_is_and_clones_stay_as_they_were(acts in prop::collection::vec(act(), 0..1500)) {
            let (mut shelves, mut tree) = (Shelves::<u16, Arc<u32>>::default(), BTreeMap::<u16, u32>::new());
            let mut clones = Vec::new();
            for act in acts {
                match act {
                    Act::Insert(key, value) => {
                        let before = shelves.insert(key, Arc::new(value)).map(|value| *value);
                        prop_assert_eq!(before, tree.insert(key, value));
                    }
                    Act::Remove(key) => {
                        prop_assert_eq!(shelves.remove(&key).map(|value| *value), tree.remove(&key));
                    }
                    Act::Change(key) => {
                        let (a, b) = (shelves.change(&key), tree.get_mut(&key));
                        prop_assert_eq!(a.is_some(), b.is_some());
                        if let (Some(a), Some(b)) = (a, b) {
                            (*a, *b) = (a.wrapping_add(1), b.wrapping_add(1));
                        }
                    }
                    Act::OrInsert(key) => {
                        let value = **shelves.get_or_insert_with(&key, || Arc::new(7));
                        prop_assert_eq!(value, *tree.entry(key).or_insert(7));
                    }
                    Act::PopFirst => {
                        prop_assert_eq!(shelves.pop_first().map(|(key, value)| (key, *value)), tree.pop_first());
                    }
                    Act::Snapshot => clones.push((shelves.clone(), tree.clone())),
                }
                check(&shelves);
            }
            clones.push((shelves, tree));
            for (shelves, tree) in clones {
                prop_assert!(shelves.iter().map(|(key, value)| (*key, **value)).eq(tree.clone()));
                for key in [0, 17, 200, 399] {
                    prop_assert_eq!(shelves.get(&key).map(|value| **value), tree.get(&key).copied());
                    prop_assert!(shelves.before(&key).map(|(key, _)| key).rev().eq(tree.range(..key).map(|(key, _)| key).rev()));
                }
                let plain: Shelves<u16, u32> = shelves.iter().map(|(key, value)| (*key, **value)).collect();
                let text = serde_json::to_string(&plain).unwrap();
                prop_assert_eq!(&text, &serde_json::to_string(&tree).unwrap());
                prop_assert_eq!(serde_json::from_str::<Shelves<u16, u32>>(&text).unwrap(), plain);
            }
        }
    }

    #[test]
    fn keys_that_grow_fill_their_shelves_and_those_that_are_left_over_are_put_together() {
        let mut set: ShelfSet<u64> = ShelfSet::default();
        (0..10_000).for_each(|key| assert!(set.insert(key)));
        assert_eq!(set.0.shelves.len(), 10_000usize.div_ceil(Shelves::<u64, ()>::MOST));
        (0..10_000).filter(|key| key % 100 != 0).for_each(|key| assert!(set.remove(&key)));
        check(&set.0);
        assert!(set.len() == 100 && set.0.shelves.len() <= 20, "{} shelves", set.0.shelves.len());
    }
}
