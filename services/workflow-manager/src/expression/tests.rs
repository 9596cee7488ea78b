use serde_json::json;

use super::*;

fn compile(text: &str) -> Result<Program, String> {
    let stage = |name: &str| match name {
        "a" | "b-c" => Ok(()),
        other => Err(format!("{other} is not a stage")),
    };
    Program::compile(&text.into(), &Scope { place: Place::Output { each: true }, stage: &stage })
}

fn values() -> Values {
    Values {
        event: None,
        input: Some(json!({
            "n": 3, "f": 2.5, "big": 9_007_199_254_740_993_i64, "text": "tea", "list": [1, 2, 3],
            "map": {"z": 1, "a": 2, "m": 3}, "none": null,
        })),
        result: Some(json!({"score": 0.7})),
        item: Some(json!("seven")),
        index: Some(json!(7)),
        results: Some(json!({"a": {"words": 120}, "b-c": null})),
        status: Some(json!({"a": "succeeded", "b-c": "skipped"})),
    }
}

fn value(text: &str) -> Result<Value, String> {
    compile(text)?.value(values())
}

#[test]
fn w4_expressions_give_values() {
    for (text, expected) in [
        ("input.n + 1", json!(4)),
        ("input.big + 1", json!(9_007_199_254_740_994_i64)),
        ("input.f * 2.0", json!(5.0)),
        ("input.n > 2 && input.text == 'tea'", json!(true)),
        ("input.n < input.f", json!(false)),
        ("results.a.words >= 100", json!(true)),
        ("results['b-c'] == null ? 'nothing' : 'something'", json!("nothing")),
        ("status.a == 'succeeded' && status[\"b-c\"] == 'skipped'", json!(true)),
        ("has(input.nothing) || has(input.text)", json!(true)),
        ("input.list.map(item, item * 10)", json!([10, 20, 30])),
        ("input.list.filter(item, item > 1)", json!([2, 3])),
        ("input.list.all(item, item > 0) && input.list.exists(item, item == 2)", json!(true)),
        ("input.list.exists_one(item, item == 2)", json!(true)),
        ("input.map.map(key, key)", json!(["a", "m", "z"])),
        ("{'words': results.a.words, 'all': input.list + [4]}", json!({"words": 120, "all": [1, 2, 3, 4]})),
        ("input.text.matches('^t.a$')", json!(true)),
        ("string(input.n) + input.text", json!("3tea")),
        ("size(input.list) + size(input.text)", json!(6)),
        ("type(input.n) == int", json!(true)),
        ("result.score > 0.5", json!(true)),
        ("input.none", json!(null)),
        ("item + string(index + 1)", json!("seven8")),
    ] {
        assert_eq!(value(text), Ok(expected), "{text}");
    }
}

#[test]
fn w4_only_what_is_read_is_asked_for() {
    let reads = |text: &str| compile(text).unwrap().reads;
    assert_eq!(reads("1 == 1"), Reads::default());
    assert!(reads("input.n == 1").input);
    let both = reads("results.a.words > 1 && status['b-c'] == 'failed'");
    assert_eq!(both.results.named.iter().collect::<Vec<_>>(), ["a"]);
    assert_eq!(both.status.named.iter().collect::<Vec<_>>(), ["b-c"]);
    assert!(!both.results.any && !both.input && !both.result);
    assert!(reads("results[input.text] == 1").results.any);
    // A variable of a macro hides what is called the same.
    assert_eq!(reads("[1].map(results, results + 1)").results, Members::default());
}

#[test]
fn w4_what_is_wrong_is_said_when_it_is_compiled() {
    for (text, said) in [
        ("", "the expression is empty"),
        ("input.n >", "can not be read"),
        ("inptu.n > 1", "there is nothing called `inptu`; did you mean `input`?"),
        ("tea == 'tea'", "a text is written in quotes"),
        ("results.z == 1", "results.z: z is not a stage"),
        ("status['z'] == 'failed'", "status.z: z is not a stage"),
        ("lenght(input.list) > 1", "there is no function `lenght`"),
        ("sise(input.list) > 1", "did you mean `size`?"),
        ("input.list.map(1)", "`map` is not called like that: for example `input.list.map(item, item.name)`"),
        ("input.text.matches(input.text)", "must be written out"),
        ("input.text.matches('(')", "can not be read: unclosed group"),
        ("input.text.matches('(a{1000}){1000}')", "too large"),
        ("Type{a: 1}", "there is no type \"Type\""),
        ("@weigh(1, 2)", "can not be read"),
    ] {
        let error = compile(text).unwrap_err();
        assert!(error.contains(said), "{text}: {error}");
    }
    let long = format!("{} == ''", "'a' + ".repeat(1000));
    assert!(compile(&long).unwrap_err().contains("at most 4096 are allowed"));
    let deep = format!("{}1{} == 1", "(1 + ".repeat(60), ")".repeat(60));
    let error = compile(&deep).unwrap_err();
    assert!(error.contains("levels deep"), "{error}");
    let chain = format!("1{} > 1", " + 1".repeat(900));
    assert!(compile(&chain).unwrap_err().contains("levels deep"));
}

#[test]
fn w4_what_goes_wrong_is_said_without_the_values() {
    for (text, said) in [
        ("input.nothing > 1", "there is no key \"nothing\""),
        ("input.text > 1", "found no matching overload for '_>_' applied to '(string, int)'"),
        ("input.n / 0 == 1", "it divides by zero"),
        ("input.list[7] == 1", "the list is shorter than that"),
        ("9223372036854775807 + input.n > 0", "a number gets too large"),
        ("int(input.text) > 0", "int"),
    ] {
        let error = compile(text).unwrap().holds(values()).unwrap_err();
        assert!(error.contains(said), "{text}: {error}");
        assert!(error.len() < 300, "{error}");
    }
    assert_eq!(compile("input.n").unwrap().holds(values()), Err("it gives a number, and not true or false".to_owned()));
}

/// The bounds hold, whatever is written. Tests have small stacks, and are not optimised.
#[test]
fn w4_an_evaluation_ends_soon() {
    let many: Vec<u32> = (0..30_000).collect();
    let values = || Values { input: Some(json!({"l": many, "t": "x".repeat(100_000)})), ..Values::default() };
    let doubled = format!("['x']{}", ".map(a, a + a)".repeat(30));
    let heavy = [
        "input.l.all(a, input.l.all(b, input.l.all(c, a + b + c >= 0)))",
        "input.l.map(a, input.l)",
        "input.l.filter(a, a in input.l).size() > 0",
        "input.l.all(a, input.l == input.l)",
        "input.l.map(a, input.t + input.t)",
        "input.l.map(a, {'k': input.l})",
        "input.l.all(a, 'x'.matches('y') == false)",
        doubled.as_str(),
    ];
    for text in heavy {
        let error = compile(text).unwrap().value(values()).unwrap_err();
        assert!(error.contains("too much work"), "{text}: {error}");
    }
    // What is large and not heavy is no trouble.
    assert_eq!(compile("input.l.map(a, a + 1).size()").unwrap().value(values()), Ok(json!(30_000)));
    assert_eq!(compile("input.l.filter(a, a % 2 == 0).size()").unwrap().value(values()), Ok(json!(15_000)));
    // As deep as may be.
    let deep = format!("{}1{} == 1", "[".repeat(15), "][0]".repeat(15));
    assert_eq!(compile(&deep).unwrap().value(values()), Ok(json!(true)));
}
