//! A run's input, as it is given on a command line.

use std::path::Path;

use baton_protocol::Json;
use serde_json::{Map, Value};

use crate::failure::Failure;

/// One `--input KEY=VALUE`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pair {
    key: String,
    value: Value,
}

/// Reads `KEY=VALUE`. A value that is JSON is that JSON, any other is text: `n=3` is a number, `n="3"` (with the quotes
/// reaching us) is text, `topic=leases` is text.
pub(crate) fn pair(text: &str) -> Result<Pair, String> {
    let (key, value) = text.split_once('=').ok_or("it must look like KEY=VALUE")?;
    if key.is_empty() {
        return Err("there is no key before the =".to_owned());
    }
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    Ok(Pair { key: key.to_owned(), value })
}

/// The input that a file and pairs make together. What a pair says counts more than what the file says.
pub(crate) fn input(file: Option<&Path>, pairs: &[Pair]) -> anyhow::Result<Json> {
    let mut input = match file {
        Some(path) => object(&crate::files::read(path)?)
            .map_err(|why| Failure::usage(format!("the input file {} can not be used: {why}", path.display())))?,
        None => Map::new(),
    };
    merge(&mut input, pairs)?;
    Ok(Json::of(&input)?)
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err("an input is a JSON object: {\"topic\": …}".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn merge(input: &mut Map<String, Value>, pairs: &[Pair]) -> Result<(), Failure> {
    for (at, pair) in pairs.iter().enumerate() {
        if pairs[..at].iter().any(|earlier| earlier.key == pair.key) {
            return Err(Failure::usage(format!("the input {:?} is given twice", pair.key)));
        }
        input.insert(pair.key.clone(), pair.value.clone());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, key: &str, value: &Value) {
        assert_eq!(pair(text), Ok(Pair { key: key.to_owned(), value: value.clone() }), "{text}");
    }

    #[test]
    fn what_is_json_is_json_and_the_rest_is_text() {
        use serde_json::json;
        check("topic=leases and locks", "topic", &json!("leases and locks"));
        check("n=3", "n", &json!(3));
        check("n=\"3\"", "n", &json!("3"));
        check("ok=true", "ok", &json!(true));
        check("list=[1,2]", "list", &json!([1, 2]));
        check("formula=a=b", "formula", &json!("a=b"));
        check("empty=", "empty", &json!(""));
        check("broken={\"a\":", "broken", &json!("{\"a\":"));
    }

    #[test]
    fn what_is_no_pair_is_refused() {
        assert!(pair("topic").unwrap_err().contains("KEY=VALUE"));
        assert!(pair("=x").unwrap_err().contains("no key"));
    }

    #[test]
    fn pairs_go_over_the_file_and_not_over_each_other() {
        let mut input = object(r#"{"topic":"a","n":1}"#).unwrap();
        merge(&mut input, &[pair("topic=b").unwrap(), pair("m=2").unwrap()]).unwrap();
        assert_eq!(Value::Object(input).to_string(), r#"{"m":2,"n":1,"topic":"b"}"#);
        let twice = [pair("a=1").unwrap(), pair("a=2").unwrap()];
        assert!(merge(&mut Map::new(), &twice).unwrap_err().to_string().contains("\"a\" is given twice"));
        assert!(object("[1]").unwrap_err().contains("object"));
    }
}
