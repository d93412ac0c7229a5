//! `meshctl route`: what happens to a Service's requests, shown as the mesh understands it and changed in the object that says it,
//! in the dialect it is written in.
//!
//! Which object that is comes from the translation. After a change the folder or the cluster is translated again: what would not be in effect,
//! because another object wins, is refused, and so is what the dialect cannot say, with what could.

mod create;
mod delete;
mod gateway;
mod istio;
mod limits;
mod linkerd;
mod mesh;
mod native;
mod set;
mod shares;
mod show;
mod smi;
mod split;

use crate::error::Result;
use crate::objects::{Namespaces, Output, Store, Writing};
use crate::place::Place;
use clap::{Args, Subcommand};
use set::Settings;
use shares::Share;
use std::process::ExitCode;

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    meshctl route list\n  \
    meshctl route show user-service\n  \
    meshctl route split user-service user-service-v1=90 user-service-v2=10\n  \
    meshctl route split hello v1=50 v2=50 --dry-run        subsets of a DestinationRule\n  \
    meshctl route set hello --timeout 3s --retries 3 --per-try-timeout 1s --retry-on 5xx,reset\n  \
    meshctl route set payment-service --route 'GET /api/balance' --timeout 2s\n  \
    meshctl route delete user-service\n  \
    meshctl route split web.shop v1=90 v2=10 --context staging\n\n\
    A change is made in the object that governs the Service, where it stands; comments\n\
    are kept. A running lab and a cluster follow at once.")]
pub struct Route {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Every Service: where its requests go, and who says so
    List {
        /// This one only
        service: Option<String>,
        #[command(flatten)]
        common: Common,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// The routes of a Service: match, destinations, timeout, retries, and where each is written
    Show {
        service: String,
        #[command(flatten)]
        common: Common,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Timeouts, retries and limits
    #[command(after_help = "Examples:\n  \
        meshctl route set hello --timeout 3s --retries 3 --retry-on 5xx,reset\n  \
        meshctl route set hello --per-try-timeout none --dry-run\n  \
        meshctl route set hello --max-connections 100 --consecutive-5xx 5\n  \
        meshctl route set payment-service --route 'GET /api/balance' --timeout 2s")]
    Set {
        service: String,
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        writing: Writing,
        #[command(flatten)]
        common: Common,
    },
    /// Shares of requests, by weight: what is not named gets none
    #[command(after_help = "Examples:\n  \
        meshctl route split user-service user-service-v1=90 user-service-v2=10\n  \
        meshctl route split hello v2=100                 all to a subset of a DestinationRule\n  \
        meshctl route split hello v1=50 v2=50 --dry-run")]
    Split {
        service: String,
        /// A Service, or a subset of this one
        #[arg(value_name = "NAME=WEIGHT", required = true)]
        shares: Vec<Share>,
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        writing: Writing,
        #[command(flatten)]
        common: Common,
    },
    /// Take away the objects that route a Service: its requests go to it again
    Delete {
        service: String,
        #[command(flatten)]
        writing: Writing,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Args)]
struct Common {
    #[command(flatten)]
    which: Namespaces,
    #[command(flatten)]
    place: Place,
}

impl Common {
    /// The Service that is typed, and the namespace that it is to be in, if one is meant.
    fn service<'t>(&'t self, store: &'t Store, typed: &'t str) -> (&'t str, Option<&'t str>) {
        // `web.shop` says it itself.
        let namespace =
            if typed.contains('.') { self.which.namespace.as_deref() } else { store.namespace(&self.which) };
        (typed, namespace)
    }

    fn read(&self) -> Result<Store> {
        let store = Store::open(&self.place)?;
        store.warn();
        Ok(store)
    }

    fn change(&self, run: impl Fn(&Store) -> Result<()>) -> Result<()> {
        Store::change(|| Store::open(&self.place), run)
    }
}

/// Which of a Service's routes is meant.
#[derive(Args, Clone, Debug, Default)]
pub struct Which {
    /// By its name, as `route show -o wide` has it; without one, the only one, or the one that takes every request
    #[arg(long, value_name = "NAME")]
    route: Option<String>,
    /// As clients of this namespace see it
    #[arg(long, value_name = "NAMESPACE")]
    clients: Option<String>,
    /// Of this port of the Service
    #[arg(long)]
    port: Option<u16>,
}

impl Route {
    pub fn run(self) -> Result<ExitCode> {
        match self.verb {
            Verb::List { service, common, output } => {
                let store = common.read()?;
                let namespace = match &service {
                    Some(service) => common.service(&store, service).1,
                    None => store.namespace(&common.which),
                };
                show::list(&store, service.as_deref(), namespace, output)
            }
            Verb::Show { service, common, output } => {
                let store = common.read()?;
                let (service, namespace) = common.service(&store, &service);
                show::show(&store, service, namespace, output)
            }
            Verb::Set { service, which, settings, writing, common } => {
                common.change(|store| set::run(store, common.service(store, &service), &which, &settings, writing))
            }
            Verb::Split { service, shares, which, writing, common } => {
                common.change(|store| split::run(store, common.service(store, &service), &which, &shares, writing))
            }
            Verb::Delete { service, writing, common } => {
                common.change(|store| delete::run(store, common.service(store, &service), writing))
            }
        }?;
        Ok(ExitCode::SUCCESS)
    }
}
