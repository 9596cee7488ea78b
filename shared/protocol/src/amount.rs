//! Amounts of resources, and money: exact decimals, never floats.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, Sub};
use std::str::FromStr;

use rust_decimal::Decimal;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::ser::{Serialize, Serializer};

use crate::name::ResourceName;

/// What a task needs or an agent has, by resource: `{"cpu": 2, "memory": 4096}`.
pub type Resources = BTreeMap<ResourceName, Amount>;

macro_rules! decimal {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $type(Decimal);

        impl $type {
            /// Nothing.
            pub const ZERO: Self = Self(Decimal::ZERO);

            /// Takes a decimal; negative ones are refused.
            pub fn new(value: Decimal) -> Result<Self, AmountError> {
                if value.is_sign_negative() && !value.is_zero() {
                    return Err(AmountError { what: $what, text: value.to_string(), why: "it is negative" });
                }
                Ok(Self(value.normalize()))
            }

            /// The decimal.
            #[must_use]
            pub fn get(self) -> Decimal {
                self.0
            }

            /// Whether this is nothing.
            #[must_use]
            pub fn is_zero(&self) -> bool {
                self.0.is_zero()
            }

            /// What is left after `other` is taken, never less than nothing.
            #[must_use]
            pub fn saturating_sub(self, other: Self) -> Self {
                Self((self.0 - other.0).max(Decimal::ZERO))
            }
        }

        impl Add for $type {
            type Output = Self;
            fn add(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }
        }

        impl Sub for $type {
            type Output = Self;
            fn sub(self, other: Self) -> Self {
                self.saturating_sub(other)
            }
        }

        impl Sum for $type {
            fn sum<I: Iterator<Item = Self>>(values: I) -> Self {
                values.fold(Self::ZERO, Add::add)
            }
        }

        impl From<u32> for $type {
            fn from(value: u32) -> Self {
                Self(value.into())
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $type {
            type Err = AmountError;
            fn from_str(text: &str) -> Result<Self, AmountError> {
                let value = Decimal::from_str_exact(text.trim())
                    .or_else(|_| Decimal::from_scientific(text.trim()))
                    .map_err(|_| AmountError { what: $what, text: text.chars().take(80).collect(), why: "it is not a decimal number" })?;
                Self::new(value)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Reads;
                impl Visitor<'_> for Reads {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(concat!("a ", $what, " as a number or a decimal string"))
                    }
                    fn visit_str<E: Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                    fn visit_u64<E: Error>(self, value: u64) -> Result<$type, E> {
                        $type::new(value.into()).map_err(E::custom)
                    }
                    fn visit_i64<E: Error>(self, value: i64) -> Result<$type, E> {
                        $type::new(value.into()).map_err(E::custom)
                    }
                    fn visit_f64<E: Error>(self, value: f64) -> Result<$type, E> {
                        // The shortest text that reads back as this float is the number the author wrote.
                        format!("{value}").parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_any(Reads)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "description": concat!("A ", $what, ": a number, or a decimal string where exactness matters. Not negative."),
                    "anyOf": [{ "type": "number", "minimum": 0 }, { "type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?$" }]
                })
            }
        }
    };
}

/// A number that is not an amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?} is not valid: {why}")]
pub struct AmountError {
    what: &'static str,
    text: String,
    why: &'static str,
}

decimal!(
    /// How much of a resource. Written as a JSON number when whole, as a decimal string otherwise.
    Amount, "resource amount"
);
decimal!(
    /// An amount of money, in the currency of the deployment. Written as a decimal string.
    Money, "money amount"
);

/// How many decimal places an amount of a pool has at the most.
pub const PLACES: u32 = 9;

impl Amount {
    /// In units of the ninth decimal place; what is finer is rounded up.
    #[must_use]
    pub fn nanos(self) -> u128 {
        let value = self.0.normalize();
        let mantissa = value.mantissa().unsigned_abs();
        match value.scale() {
            // A mantissa has 96 bits, so that nine more digits fit.
            scale @ 0..=PLACES => mantissa * 10u128.pow(PLACES - scale),
            scale => mantissa.div_ceil(10u128.pow(scale - PLACES)),
        }
    }

    /// So many units of the ninth decimal place; the largest amount there is, if they are more.
    #[must_use]
    pub fn from_nanos(nanos: u128) -> Self {
        let nanos = i128::try_from(nanos).unwrap_or(i128::MAX);
        Self(Decimal::try_from_i128_with_scale(nanos, PLACES).unwrap_or(Decimal::MAX).normalize())
    }

    /// Rounded up to nine decimal places.
    #[must_use]
    pub fn rounded_up(self) -> Self {
        if self.0.scale() <= PLACES { self } else { Self::from_nanos(self.nanos()) }
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match u64::try_from(self.0) {
            Ok(whole) if Decimal::from(whole) == self.0 => serializer.serialize_u64(whole),
            _ => serializer.collect_str(&self.0),
        }
    }
}

impl Serialize for Money {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// Whether `have` covers `need` in every resource; if not, the first that it does not.
pub fn covers(have: &Resources, need: &Resources) -> Result<(), ResourceName> {
    for (name, amount) in need {
        if have.get(name).copied().unwrap_or_default() < *amount {
            return Err(name.clone());
        }
    }
    Ok(())
}

/// What of that is of pools, and what is of an agent's own. Of a pool nothing is nothing to take, and is left with the agent.
pub fn split(resources: &Resources, is_pool: impl Fn(&ResourceName) -> bool) -> (Resources, Resources) {
    resources.clone().into_iter().partition(|(name, amount)| !amount.is_zero() && is_pool(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_numbers_and_strings_exactly() {
        for (json, text) in [("2", "2"), ("0.1", "0.1"), ("\"0.10\"", "0.1"), ("4096.0", "4096"), ("1e3", "1000")] {
            assert_eq!(serde_json::from_str::<Amount>(json).unwrap().to_string(), text);
        }
        let tenth: Money = "0.1".parse().unwrap();
        assert_eq!((tenth + tenth + tenth).to_string(), "0.3");
        assert_eq!(serde_json::to_string(&(tenth, Amount::from(3))).unwrap(), "[\"0.1\",3]");
    }

    #[test]
    fn r3_nine_decimal_places_are_exact_and_the_rest_is_rounded_up() {
        for (text, nanos) in [("0", 0), ("1", 1_000_000_000), ("0.000000001", 1), ("12.5", 12_500_000_000)] {
            let amount: Amount = text.parse().unwrap();
            assert_eq!((amount.nanos(), Amount::from_nanos(nanos), amount.rounded_up()), (nanos, amount, amount));
        }
        let fine: Amount = "0.00000000101".parse().unwrap();
        assert_eq!(fine.rounded_up().to_string(), "0.000000002");
        let largest: Amount = Decimal::MAX.to_string().parse().unwrap();
        assert_eq!(Amount::from_nanos(u128::MAX), largest);
        assert_eq!(largest.nanos() / 1_000_000_000, largest.0.mantissa().unsigned_abs());
    }

    #[test]
    fn nonsense_is_refused_with_what_it_was() {
        for bad in ["-1", "\"x\"", "\"1,5\"", "true", "1e400", "\"NaN\""] {
            let error = serde_json::from_str::<Amount>(bad).unwrap_err().to_string();
            assert!(error.contains("amount") || error.contains("number"), "{bad}: {error}");
        }
    }
}
