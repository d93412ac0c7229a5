//! `meshctl lab DIR --check`: the commands of the text that a lab comes from, one after the other, and whether each does here
//! what the text says. The lab is started from a copy of its folder, so that steps may edit it, and stopped at the end.

mod copy;
mod expect;
mod report;
mod shell;
mod steps;

pub use copy::sweep;

use super::live;
use super::record::Lab;
use super::up::{self, Options};
use crate::error::{During, Error, Result};
use crate::terminal;
use copy::Copy;
use report::{Done, Outcome, Report};
use shell::{Output, Shell};
use std::process::ExitCode;
use std::time::Duration;
use steps::{Act, Run, Step};
use tokio::time::Instant;

/// Between two looks at the same thing.
const AGAIN: Duration = Duration::from_millis(200);

pub async fn run(mut options: Options, json: bool) -> Result<ExitCode> {
    let example = std::mem::take(&mut options.folder);
    let steps = steps::read(&example)?;
    let copy = Copy::of(&example, steps.start.as_deref())?;
    options.folder = copy.path().canonicalize().during(copy.path().display())?;
    let shell = |lab| Shell { folder: copy.path().into(), example: example.clone(), lab };
    if json {
        live::aside();
    }
    let mut report = Report::default();
    up::run(options, async |lab: Lab| {
        settled(&lab).await;
        let shell = shell(lab.id);
        let mut last = None;
        for step in &steps.all {
            let done = take(step, &shell, &mut last).await;
            live::say(done.text(terminal::coloured()).trim_end());
            report.0.push(done);
        }
    })
    .await?;
    let whole = report.0.len() == steps.all.len();
    match json {
        true => println!("{:#}", report.json(&example.display().to_string(), whole)),
        false => println!("{}", report.summary(terminal::coloured())),
    }
    if !whole {
        let (done, all) = (report.0.len(), steps.all.len());
        return Err(Error::new(format!("the check ended after {done} of {all} steps"), ""));
    }
    Ok(if report.count(Outcome::Failed) == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Until the lab has shown what runs in it.
async fn settled(lab: &Lab) {
    while !lab.status().is_ok_and(|status| status["settled"] == true) {
        tokio::time::sleep(AGAIN).await;
    }
}

/// `last` is the last command that was run, and what it printed.
async fn take(step: &Step, shell: &Shell, last: &mut Option<(Run, Output)>) -> Done {
    let begun = Instant::now();
    let mut done = Done {
        line: step.line,
        text: step.text.clone(),
        outcome: Outcome::Passed,
        why: String::new(),
        run: None,
        output: None,
        took: Duration::ZERO,
    };
    let (run, expect, within) = match &step.act {
        Act::Later(why) => return Done { outcome: Outcome::Later, why: why.clone(), ..done },
        Act::Check { run, expect, within } => (run, expect, *within),
    };
    done.run = run.clone();
    // Without a command of its own it looks at what is there, and only then again.
    let mut seen = if run.is_none() { last.clone() } else { None };
    let judged = loop {
        let (run, output) = match (seen.take(), run.as_ref().or(last.as_ref().map(|(run, _)| run))) {
            (Some(seen), _) => seen,
            (None, Some(run)) => match shell.run(run).await {
                Ok(output) => (run.clone(), output),
                Err(error) => break Err(error.to_string()),
            },
            (None, None) => break Err("no command has been run".into()),
        };
        let judged = expect.judge(&output);
        *last = Some((run, output));
        if judged.is_ok() || begun.elapsed() >= within {
            break judged;
        }
        tokio::time::sleep(AGAIN).await;
    };
    done.took = begun.elapsed();
    if let Err(why) = judged {
        done.outcome = Outcome::Failed;
        done.why = why;
        done.output = last.as_ref().map(|(_, output)| output.clone());
    }
    done
}
