//! What sidecars say of themselves to each other: the first bytes inside a mesh connection of ours, once, whatever travels on it.
//!
//! A certificate names a namespace and a service account only; the workload, its app, version, pod and cluster are its own
//! word, for metrics and logs, and never for a decision. The client introduces itself, with the first bytes it sends anyway.
//! The server needs not: the client picked the endpoint, and its configuration says which workload that is.
//!
//! On the wire: two bytes of length, then texts of one length byte each, in the order below. What a newer version appends is
//! passed over. It belongs to the ALPN tokens `weft/*`; peers that chose a plain token (other meshes, tools) say nothing.

use std::io;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_policy::meta::Workload;
use weft_tls::MeshStream;

const TEXTS: usize = 6;
/// More than six longest texts: room for what a newer version adds.
const MAX: usize = 4096;

/// Whether what was negotiated begins with an introduction.
pub fn is_due(stream: &MeshStream) -> bool {
    stream.alpn().is_some_and(|token| token.starts_with(b"weft/"))
}

pub fn encode(workload: &Workload) -> Arc<[u8]> {
    let Workload { name, namespace, app, version, pod, cluster } = workload;
    let mut out = vec![0; 2];
    for text in [name, namespace, app, version, pod, cluster] {
        let mut length = text.len().min(usize::from(u8::MAX));
        while !text.is_char_boundary(length) {
            length -= 1;
        }
        out.push(u8::try_from(length).unwrap_or_default());
        out.extend_from_slice(&text.as_bytes()[..length]);
    }
    let length = u16::try_from(out.len() - 2).unwrap_or_default();
    out[..2].copy_from_slice(&length.to_be_bytes());
    out.into()
}

fn decode(mut said: &[u8]) -> Option<Workload> {
    let mut texts: [Arc<str>; TEXTS] = Default::default();
    for text in &mut texts {
        let (length, rest) = said.split_first()?;
        let (bytes, rest) = rest.split_at_checked(usize::from(*length))?;
        *text = std::str::from_utf8(bytes).ok()?.into();
        said = rest;
    }
    let [name, namespace, app, version, pod, cluster] = texts;
    Some(Workload { name, namespace, app, version, pod, cluster })
}

/// Says who we are. Costs no write of its own: the bytes leave with the first that follow.
pub async fn give(stream: &mut MeshStream, introduction: &[u8]) -> io::Result<()> {
    stream.write_all(introduction).await
}

/// Hears who the client is. No time limit of its own.
pub async fn take(stream: &mut MeshStream) -> io::Result<Workload> {
    let length = usize::from(stream.read_u16().await?);
    if length > MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut said = vec![0; length];
    stream.read_exact(&mut said).await?;
    decode(&said).ok_or(io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web() -> Workload {
        let text = Arc::<str>::from;
        Workload {
            name: text("web-v1"),
            namespace: text("demo"),
            app: text("web"),
            version: text("v1"),
            ..Default::default()
        }
    }

    #[test]
    fn what_is_said_is_heard() {
        let said = encode(&web());
        assert_eq!(usize::from(u16::from_be_bytes([said[0], said[1]])), said.len() - 2);
        assert_eq!(decode(&said[2..]), Some(web()));
        // A newer version says more.
        assert_eq!(decode(&[&said[2..], b"\x05newer"].concat()), Some(web()));
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        let long = Workload { name: "ö".repeat(200).into(), ..web() };
        let heard = decode(&encode(&long)[2..]).unwrap();
        assert_eq!(&*heard.name, "ö".repeat(127));
        assert_eq!(heard.app, web().app);
    }

    #[test]
    fn what_breaks_off_or_is_no_text_is_refused() {
        let said = encode(&web());
        for end in 2..said.len() {
            assert_eq!(decode(&said[2..end]), None, "{end} bytes");
        }
        let mut no_text = said.to_vec();
        no_text[3] = 0xff;
        assert_eq!(decode(&no_text[2..]), None);
    }
}
