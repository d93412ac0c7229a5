//! The mesh in a real Kubernetes. `cargo test -p weft-e2e --test mesh [-- NAME]`; docs/development.md says more.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod apps;
mod conformance;
mod disturbances;
mod figures;
mod labs;
mod rbac;
mod security;
mod shipped;

use std::process::ExitCode;
use weft_e2e::run;

fn main() -> ExitCode {
    run::main(&[
        ("install::everything_is_ready", labs::installed),
        ("rbac::each_rule_is_missed", rbac::each_rule_is_missed),
        ("rbac::who_may_not_is_told", rbac::who_may_not_is_told),
        ("labs::tutorial_5_9", labs::tutorial),
        ("labs::lab_9_5", labs::lab_9_5),
        ("labs::lab_8", labs::lab_8),
        ("labs::injection_off_again", labs::off_again),
        ("apps::set_up", apps::set_up),
        ("apps::a_job_completes", apps::job_completes),
        ("apps::every_protocol", apps::every_protocol),
        ("apps::a_pod_calls_itself", apps::calls_itself),
        ("apps::peers_by_name", apps::peers_by_name),
        ("apps::names_of_elsewhere", apps::names_of_elsewhere),
        ("apps::narrow_listeners", apps::narrow_listeners),
        ("apps::without_a_certificate", apps::without_a_certificate),
        ("apps::out_of_the_mesh", apps::out_of_the_mesh),
        ("apps::metrics_under_strict", apps::metrics_under_strict),
        ("apps::a_post_is_tried_elsewhere", apps::a_post_is_tried_elsewhere),
        ("apps::a_long_stream", apps::a_long_stream),
        ("apps::ends_after_its_app", apps::ends_after_its_app),
        ("shipped::static_sidecar", shipped::static_sidecar),
        ("conformance::gateway_api_mesh", conformance::mesh_profiles),
        ("figures::pods_are_ready_soon", figures::pods_are_ready_soon),
        ("figures::memory", figures::memory),
        ("figures::cpu_per_request", figures::cpu_per_request),
        ("figures::routes_take_effect", figures::routes_take_effect),
        ("figures::webhook_latency", figures::webhook_latency),
        ("security::set_up", security::set_up),
        ("security::another_identity_is_expected", security::another_identity_is_expected),
        ("security::strict_ends_plaintext", security::strict_ends_plaintext),
        ("security::the_ca_is_deleted", security::the_ca_is_deleted),
        ("security::a_root_is_removed", security::a_root_is_removed),
        ("disturbances::set_up", disturbances::set_up),
        ("disturbances::rolling_restart", disturbances::rolling_restart),
        ("disturbances::control_plane_rolls", disturbances::control_plane_rolls),
        ("disturbances::control_plane_is_killed", disturbances::control_plane_is_killed),
        ("disturbances::api_server_is_away", disturbances::api_server_is_away),
        ("disturbances::injector_is_away", disturbances::injector_is_away),
        ("disturbances::root_rotates", disturbances::root_rotates),
    ])
}
