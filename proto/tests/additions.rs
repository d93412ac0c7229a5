//! Releases understand each other: whatever a released `mesh.proto` says is still there, with the same numbers and types.
//! `recorded/` holds the descriptor of each release; `cargo test -p weft-proto --test additions -- --ignored` adds this one's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use prost::Message;
use prost_types::{DescriptorProto, FileDescriptorSet};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded")
}

/// What peers of another version lean on, each under the name that people know it by.
fn promises(descriptor: &[u8]) -> BTreeMap<String, String> {
    let set = FileDescriptorSet::decode(descriptor).expect("a descriptor");
    let mut out = BTreeMap::new();
    for file in &set.file {
        for message in &file.message_type {
            fields(file.package(), message, &mut out);
        }
        for service in &file.service {
            for method in &service.method {
                let name = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                let stream = |on: bool| if on { "stream of " } else { "" };
                let (input, output) = (stream(method.client_streaming()), stream(method.server_streaming()));
                out.insert(name, format!("{input}{} to {output}{}", method.input_type(), method.output_type()));
            }
        }
        assert!(file.enum_type.is_empty(), "the test does not know of enumerations");
    }
    out
}

fn fields(scope: &str, message: &DescriptorProto, out: &mut BTreeMap<String, String>) {
    let name = format!("{scope}.{}", message.name());
    assert!(message.enum_type.is_empty(), "the test does not know of enumerations");
    for field in &message.field {
        let oneof = field.oneof_index.map(|i| message.oneof_decl[i as usize].name());
        let kind = format!("{:?} {:?} {} in {oneof:?}", field.label(), field.r#type(), field.type_name());
        out.insert(format!("{name}#{}", field.number()), format!("{} {kind}", field.name()));
    }
    out.insert(name.clone(), "a message".into());
    message.nested_type.iter().for_each(|nested| fields(&name, nested, out));
}

#[test]
fn nothing_released_has_changed() {
    let today = promises(weft_proto::v1::DESCRIPTOR);
    let mut releases = 0;
    for entry in std::fs::read_dir(recorded()).expect("recorded descriptors") {
        let path = entry.unwrap().path();
        let then = promises(&std::fs::read(&path).unwrap());
        assert!(then.len() > 30, "{}: {then:?}", path.display());
        for (name, promise) in &then {
            assert_eq!(today.get(name), Some(promise), "{name} of {} is not what it was", path.display());
        }
        releases += 1;
    }
    assert!(releases > 0);
}

/// The comparison sees what it is for.
#[test]
fn a_changed_number_is_seen() {
    let mut set = FileDescriptorSet::decode(weft_proto::v1::DESCRIPTOR).unwrap();
    let today = promises(weft_proto::v1::DESCRIPTOR);
    let message = set.file[0].message_type.iter_mut().find(|m| m.name() == "Resource").unwrap();
    message.field[0].number = Some(9);
    let other = promises(&set.encode_to_vec());
    assert!(today.contains_key(".weft.v1.Resource#1") || today.contains_key("weft.v1.Resource#1"), "{today:?}");
    assert_ne!(other, today);
}

#[test]
#[ignore = "writes the descriptor of this release, once, when it is made"]
fn record() {
    let name = format!("v{}.desc", env!("CARGO_PKG_VERSION").rsplit_once('.').unwrap().0);
    std::fs::create_dir_all(recorded()).unwrap();
    std::fs::write(recorded().join(name), weft_proto::v1::DESCRIPTOR).unwrap();
}
