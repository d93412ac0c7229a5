//! Every example of the reference is a file that the proxy takes.

use crate::files::Folder;
use weft_proxy::config::file::ProxyConfig;
use weft_proxy::settings::render;

/// Fragments stand where they belong in a small file.
fn whole(kind: &str, text: &str) -> String {
    let indented = |by: usize| -> String { text.lines().map(|l| format!("{}{l}\n", " ".repeat(by))).collect() };
    let front = "listeners: [{name: front, role: hop, address: '127.0.0.1:8080', to: web}]\n";
    match kind {
        "" => text.to_string(),
        "listener" => format!("listeners:\n- \n{}", indented(2)),
        "route" => format!("{front}services:\n- name: web\n  port: 80\n  routes:\n  - \n{}", indented(4)),
        "policy" => format!("{front}services:\n- name: web\n  port: 80\n  policy:\n{}", indented(4)),
        other => panic!("what is a {other}?"),
    }
}

#[test]
fn every_example_of_the_reference_is_valid() {
    let folder = Folder::new();
    folder.certificates();
    let text = include_str!("../../../docs/config-file.md");
    let mut examples = 0;
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("```yaml") {
        let (block, after) = after.split_once("\n```").unwrap();
        let (kind, body) = block.split_once('\n').unwrap();
        let line = text.len() - rest.len();
        let (config, diags) = ProxyConfig::parse(&whole(kind.trim(), body), folder.path());
        let found = render(std::path::Path::new("example"), &diags, false);
        assert!(config.is_some() && found.is_empty(), "at byte {line}:\n{body}\n{found}");
        examples += 1;
        rest = after;
    }
    assert_eq!(examples, 8);
}

#[test]
fn the_example_of_the_help_is_valid() {
    use clap::CommandFactory;
    let help = weft_proxy::settings::Settings::command().render_long_help().to_string();
    let (_, after) = help.split_once("two backends:\n").unwrap();
    let (example, _) = after.split_once("\n\n").unwrap();
    let (config, diags) = ProxyConfig::parse(example, std::path::Path::new("."));
    assert!(config.is_some(), "{:?}\n{example}", diags.0);
}
