//! `meshctl completions`: what a shell needs to complete commands and flags.

use crate::error::Result;
use clap::{Args, Command, ValueEnum};
use clap_complete::shells;
use std::process::ExitCode;

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    meshctl completions bash > /etc/bash_completion.d/meshctl\n  \
    source <(meshctl completions zsh)\n  \
    meshctl completions fish > ~/.config/fish/completions/meshctl.fish")]
pub struct Completions {
    shell: Shell,
}

#[derive(Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Completions {
    pub fn run(self, command: &mut Command) -> Result<ExitCode> {
        let (name, mut out) = (command.get_name().to_string(), Vec::new());
        match self.shell {
            Shell::Bash => clap_complete::generate(shells::Bash, command, name, &mut out),
            Shell::Zsh => clap_complete::generate(shells::Zsh, command, name, &mut out),
            Shell::Fish => clap_complete::generate(shells::Fish, command, name, &mut out),
        }
        print!("{}", String::from_utf8_lossy(&out));
        Ok(ExitCode::SUCCESS)
    }
}
