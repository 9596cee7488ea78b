//! Runs all four roles over a folder and prints what each of them gives.
//!
//! `cargo run -p baton-stock --example article -- FOLDER TOPIC [WORDS]`

use std::time::Instant;

use baton_stock::roles::{Context, Role};
use serde_json::{Value, json};

fn main() {
    let mut args = std::env::args().skip(1);
    let (Some(folder), Some(topic)) = (args.next(), args.next()) else {
        eprintln!("usage: article FOLDER TOPIC [WORDS]");
        std::process::exit(2);
    };
    let length = args.next().and_then(|words| words.parse().ok()).unwrap_or(500_u64);
    let mut results = serde_json::Map::new();
    let mut shown = String::new();
    for role in Role::ALL {
        let started = Instant::now();
        let task = json!({
            "input": { "topic": topic, "sources": folder, "length": length },
            "results": results,
            "metadata": { "requires_citations": true },
        });
        match role.run(&task, &Context::default()) {
            Ok(output) => {
                eprintln!("{role}: {:?}, {} bytes", started.elapsed(), output.to_string().len());
                report(role, &output);
                if let Some(document) = output.get("document").and_then(Value::as_str) {
                    document.clone_into(&mut shown);
                }
                results.insert(role.name().to_owned(), output);
            }
            Err(error) => {
                eprintln!("{role}: {error}");
                std::process::exit(1);
            }
        }
    }
    print!("{shown}");
}

fn report(role: Role, output: &Value) {
    match role {
        Role::Research => {
            for extract in output["extracts"].as_array().into_iter().flatten() {
                eprintln!("  {:>6} {} — {}", extract["score"].to_string(), extract["source"], extract["heading"]);
            }
            eprintln!("  {}, {} skipped", output["considered"], output["skipped"].as_array().map_or(0, Vec::len));
        }
        Role::Writing => eprintln!("  {} words, notes {}", output["words"], output["notes"]),
        Role::Editing => eprintln!("  {} {} {}", output["counts"], output["readability"], output["changes"]),
        Role::Verification => eprintln!("  {} {} of {}", output["verdict"], output["supported"], output["checked"]),
    }
}
