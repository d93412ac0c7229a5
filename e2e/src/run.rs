//! Runs tests one after the other on one mesh, and tells of them as `cargo test` does.

use crate::{Mesh, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

pub type Test = (&'static str, fn(&mut Mesh) -> Result);

/// Arguments as those of `cargo test`: words that names contain, `--exact`, `--list`; others have no meaning here.
pub fn main(tests: &[Test]) -> ExitCode {
    let mut words = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--list" => {
                tests.iter().for_each(|(name, _)| println!("{name}: test"));
                return ExitCode::SUCCESS;
            }
            "--test-threads" | "--skip" | "--format" | "--color" => drop(args.next()),
            flag if flag.starts_with('-') => {}
            word => words.push(word.to_string()),
        }
    }
    let chosen: Vec<&Test> =
        tests.iter().filter(|(name, _)| words.is_empty() || words.iter().any(|w| name.contains(w.as_str()))).collect();
    println!("\nrunning {} tests", chosen.len());
    if chosen.is_empty() {
        println!("\ntest result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; {} filtered out\n", tests.len());
        return ExitCode::SUCCESS;
    }
    let begun = Instant::now();
    let mut failed = Vec::new();
    match Mesh::start() {
        Ok(mut mesh) => {
            for (name, test) in &chosen {
                let at = Instant::now();
                let outcome = catch_unwind(AssertUnwindSafe(|| test(&mut mesh)))
                    .unwrap_or_else(|_| Err("it panicked; see above".into()));
                match outcome {
                    Ok(()) => println!("test {name} ... ok ({:.1} s)", at.elapsed().as_secs_f32()),
                    Err(error) => {
                        println!("test {name} ... FAILED ({:.1} s)\n{error}\n", at.elapsed().as_secs_f32());
                        println!("{}", mesh.state());
                        failed.push((*name, error.to_string()));
                    }
                }
            }
        }
        Err(error) => {
            println!("the mesh does not start: {error}");
            failed.extend(chosen.iter().map(|(name, _)| (*name, "the mesh does not start".to_string())));
        }
    }
    let word = if failed.is_empty() { "ok" } else { "FAILED" };
    // Once more, short: what a log keeps of its end should say what it was.
    failed.iter().for_each(|(name, why)| println!("    {name}: {}", why.chars().take(600).collect::<String>()));
    println!(
        "\ntest result: {word}. {} passed; {} failed; 0 ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        chosen.len() - failed.len(),
        failed.len(),
        tests.len() - chosen.len(),
        begun.elapsed().as_secs_f32()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(101) }
}
