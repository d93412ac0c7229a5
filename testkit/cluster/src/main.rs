//! `weft-cluster`: a Kubernetes to play with.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use clap::{Parser, Subcommand};
use serde_json::json;
use weft_cluster::{Cluster, Error, Image, Options, Place, Result, State};

/// A real Kubernetes on this machine, in a network of its own. Needs root.
#[derive(Parser)]
#[command(
    name = "weft-cluster",
    version,
    after_help = "Examples:
  weft-cluster up                                    start it (the first time builds it: minutes)
  weft-cluster kubectl get pods -A
  weft-cluster kubectl run hello --image busybox:1 -it --rm -- sh
  weft-cluster shell                                 a shell with kubectl, where Services and pods can be reached
  weft-cluster shell -- wget -qO- http://10.96.0.10:9153/metrics
  weft-cluster import my/app:1=target/app            a static program as an image
  weft-cluster mesh                                  the mesh's images, of what cargo has built
  weft-cluster down
  weft-cluster images                                the mesh's images as they are shipped, as files (no cluster)

A second cluster beside it: weft-cluster up --name other; other commands take --name as well, before their own words.

Exit codes: 0 done, 1 it failed (the message says why), 2 wrong use."
)]
struct Cli {
    /// Which cluster
    #[arg(long, env = "WEFT_CLUSTER", default_value = "weft", global = true)]
    name: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Start a cluster; what it needs is installed and built first
    Up {
        /// Leave it as it is if its start fails, to look at its logs
        #[arg(long)]
        keep: bool,
    },
    /// End a cluster and remove every trace of it
    Down {
        /// All that there are
        #[arg(long)]
        all: bool,
    },
    /// Say which clusters there are, and which of their parts do not run
    Status {
        #[arg(short, long, value_parser = ["json"])]
        output: Option<String>,
    },
    /// Run kubectl against it
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Open a shell, or run a command, in the cluster's network with kubectl at hand
    Shell {
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Give the cluster images: archives as `docker save` writes them, or NAME:TAG=PROGRAM for a static program
    Import {
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Give the cluster the mesh's images, and those of the examples, of programs that cargo has built
    Mesh {
        /// Where they are; the folder that this program was built into if not given
        #[arg(long, value_name = "DIR")]
        programs: Option<PathBuf>,
    },
    /// Build the mesh's images as they are shipped, of static programs, and write them as archives; takes no cluster, engine or root
    Images {
        /// Where to
        #[arg(default_value = "target/images")]
        folder: PathBuf,
        /// What stands before the names: a registry and a folder of it
        #[arg(long, value_name = "PREFIX", default_value = "weft")]
        prefix: String,
        /// Take static programs that images/programs has built there, and build nothing
        #[arg(long, value_name = "DIR")]
        programs: Option<PathBuf>,
    },
    /// Show the end of a part's log
    Logs {
        #[arg(default_value = "kubelet")]
        part: String,
        /// How many lines
        #[arg(short = 'n', long, default_value_t = 50)]
        lines: usize,
    },
    /// Install and build what a cluster needs, and start nothing
    Build,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    run(&cli).unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::from(1)
    })
}

fn run(cli: &Cli) -> Result<ExitCode> {
    match &cli.verb {
        Verb::Up { keep } => up(&cli.name, *keep)?,
        Verb::Down { all } => down(&cli.name, *all)?,
        Verb::Status { output } => return status(output.is_some()),
        Verb::Kubectl { args } => return Err(replace(Cluster::open(&cli.name)?.command("kubectl").args(args))),
        Verb::Shell { command } => {
            let cluster = Cluster::open(&cli.name)?;
            let shell = std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".into());
            let (program, args) = match command.split_first() {
                Some((program, args)) => (program.as_str(), args),
                None => {
                    eprintln!(
                        "in the network of cluster {}; its node is {}; exit leaves it",
                        cli.name,
                        cluster.place().address()
                    );
                    (shell.as_str(), &[][..])
                }
            };
            return Err(replace(cluster.command(program).args(args)));
        }
        Verb::Import { images } => import(&Cluster::open(&cli.name)?, images)?,
        Verb::Mesh { programs } => mesh(&Cluster::open(&cli.name)?, programs.as_deref())?,
        Verb::Images { folder, prefix, programs } => images(folder, prefix, programs.as_deref())?,
        Verb::Logs { part, lines } => logs(&cli.name, part, *lines)?,
        Verb::Build => println!("{}", weft_cluster::programs()?.display()),
    }
    Ok(ExitCode::SUCCESS)
}

fn mesh(cluster: &Cluster, programs: Option<&Path>) -> Result<()> {
    let own = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
    let programs = programs.map(Path::to_path_buf).or(own).unwrap_or_default();
    for image in weft_cluster::mesh_images(&programs)?.iter().chain(&weft_cluster::example_images(&programs)?) {
        cluster.import(image)?;
        println!("{}", image.name());
    }
    println!("next: weft-cluster shell, and there {}/meshctl install -y", programs.display());
    Ok(())
}

fn images(folder: &Path, prefix: &str, programs: Option<&Path>) -> Result<()> {
    let built = folder.join("programs");
    if programs.is_none() {
        weft_cluster::static_programs(&built, "dist", &[])?;
    }
    let written = weft_cluster::shipped_images(programs.unwrap_or(&built), prefix, folder)?;
    for image in &written {
        println!("{:<40}  {:>5.1} MiB  {}", image.name, image.size as f64 / (1 << 20) as f64, image.file.display());
    }
    println!("next: docker load -i FILE, podman load -i FILE, kind load image-archive FILE, weft-cluster import FILE");
    Ok(())
}

fn up(name: &str, keep: bool) -> Result<()> {
    let say = |line: &str| eprintln!("  {line}");
    eprintln!("cluster {name}");
    let mut cluster = Cluster::start(Options { name: name.into(), keep_failed: keep, say: &say, ..Options::default() })
        .inspect_err(|_| {
            if keep {
                eprintln!("kept as it is: weft-cluster logs --name {name} PART; weft-cluster down --name {name}");
            }
        })?;
    cluster.detach()?;
    let place = cluster.place();
    println!("nodes {}/24, pods {}, Services {}", place.address(), place.pods(), place.services());
    println!("kubeconfig {} (for programs inside the cluster's network)", place.kubeconfig().display());
    println!("logs       {}", place.path("logs").display());
    let which = if name == "weft" { String::new() } else { format!(" --name {name}") };
    println!("try: weft-cluster{which} kubectl get pods -A; weft-cluster{which} shell; weft-cluster{which} down");
    Ok(())
}

fn down(name: &str, all: bool) -> Result<()> {
    let names = if all { Place::all()?.iter().map(|p| p.name().to_string()).collect() } else { vec![name.to_string()] };
    for name in names {
        if weft_cluster::down(&name)? {
            println!("cluster {name} is gone");
        } else {
            println!("there is no cluster {name}");
        }
    }
    Ok(())
}

/// Fails if a part of a cluster does not run.
fn status(json: bool) -> Result<ExitCode> {
    let mut all = Vec::new();
    for place in Place::all()? {
        let cluster = Cluster::open(place.name())?;
        let dead: Vec<&str> = cluster.parts().iter().filter(|(_, pid)| pid.is_none()).map(|(part, _)| *part).collect();
        let state = match place.state() {
            State::Up => "up",
            State::Held => "held",
            State::Orphan => "left",
        };
        all.push((place, state, dead));
    }
    let sound = all.iter().all(|(_, _, dead)| dead.is_empty());
    if json {
        let rows = all.iter().map(|(place, state, dead)| {
            json!({
                "name": place.name(), "state": state, "notRunning": dead, "kubeconfig": place.kubeconfig(),
                "networkNamespace": place.netns(), "node": place.address(), "pods": place.pods(), "services": place.services(),
            })
        });
        println!("{:#}", rows.collect::<serde_json::Value>());
    } else if all.is_empty() {
        println!("there is no cluster (weft-cluster up starts one)");
    } else {
        println!("{:<20}  {:<5}  {:<12}  {:<14}  NOT RUNNING", "NAME", "STATE", "NODE", "PODS");
        for (place, state, dead) in &all {
            let dead = if dead.is_empty() { "-".into() } else { dead.join(", ") };
            println!("{:<20}  {state:<5}  {:<12}  {:<14}  {dead}", place.name(), place.address(), place.pods());
        }
    }
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn import(cluster: &Cluster, images: &[String]) -> Result<()> {
    for image in images {
        if Path::new(image).is_file() {
            let status = cluster.ctr().args(["images", "import", image]).stdin(Stdio::null()).status();
            if !status.as_ref().is_ok_and(std::process::ExitStatus::success) {
                return Err(format!("{image} is not imported").into());
            }
            continue;
        }
        let (name, program) =
            image.split_once('=').filter(|(_, program)| Path::new(program).is_file()).ok_or_else(|| {
                Error::new(format!("{image} is no file"), "an archive that `docker save` wrote, or NAME:TAG=PROGRAM")
            })?;
        cluster.import(&Image::of_program(name, Path::new(program)))?;
        println!("{name}");
    }
    Ok(())
}

fn logs(name: &str, part: &str, lines: usize) -> Result<()> {
    let cluster = Cluster::open(name)?;
    if !cluster.place().log(part).exists() {
        let parts: Vec<&str> = cluster.parts().iter().map(|(part, _)| *part).collect();
        return Err(Error::new(format!("{part} has no log"), parts.join(", ")));
    }
    println!("{}", cluster.place().log(part).display());
    print!("{}", weft_cluster::log_end(cluster.place(), part, lines));
    Ok(())
}

/// The command goes on in this process, so its exit code is ours.
fn replace(command: &mut Command) -> Error {
    let refused = command.exec();
    Error::from(format!("{:?}: {refused}", command.get_program()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line() {
        Cli::command().debug_assert();
        let cli =
            Cli::try_parse_from(["weft-cluster", "--name", "a", "kubectl", "-n", "b", "get", "--raw", "/"]).unwrap();
        assert!(matches!(cli.verb, Verb::Kubectl { args } if args == ["-n", "b", "get", "--raw", "/"]));
        assert_eq!(cli.name, "a");
        for good in [
            &["up", "--keep"][..],
            &["down", "--all"],
            &["status", "-o", "json"],
            &["shell", "--", "ls", "-l"],
            &["images", "out", "--prefix", "registry.example/weft"],
        ] {
            assert!(Cli::try_parse_from([&["weft-cluster"], good].concat()).is_ok(), "{good:?}");
        }
        for bad in [&[][..], &["shell", "ls"], &["import"], &["status", "-o", "yaml"]] {
            assert!(Cli::try_parse_from([&["weft-cluster"], bad].concat()).is_err(), "{bad:?}");
        }
    }
}
