//! The images of the examples: the sample app and this machine's busybox and curl, under the names that manifests use.

use std::path::Path;

use crate::error::{During, Result};
use crate::image::Image;

/// `http-echo` has its flags with one dash, and the sample app's text and port are the same thing.
const HTTP_ECHO: &str = r#"#!/bin/sh
port=5678 text=hello-world status=200
while [ $# -gt 0 ]; do
  case $1 in
    -text=*|--text=*) text=${1#*=} ;;
    -listen=*|--listen=*) port=${1##*:} ;;
    -status-code=*|--status-code=*) status=${1#*=} ;;
    *) echo "http-echo has no flag $1" >&2; exit 2 ;;
  esac
  shift
done
unset BACKEND_PORT GRPC_PORT TCP_PORT
exec mesh-sample --port "$port" --text "$text" --status "$status"
"#;

/// An app is called after its Deployment unless it is told otherwise. Of a Service called `backend` Kubernetes tells every pod
/// `BACKEND_PORT=tcp://...`, which is no port.
const SAMPLE: &str = r#"#!/bin/sh
export SERVICE_NAME="${SERVICE_NAME:-${HOSTNAME%-*-*}}"
case $BACKEND_PORT in tcp://*) unset BACKEND_PORT ;; esac
case $GRPC_PORT in tcp://*) unset GRPC_PORT ;; esac
case $TCP_PORT in tcp://*) unset TCP_PORT ;; esac
exec mesh-sample "$@"
"#;

/// `programs` is where ours are built.
pub fn example_images(programs: &Path) -> Result<Vec<Image>> {
    let with_tools = |name: &str| -> Result<Image> {
        let image = Image::new(name)
            .linked_program("usr/bin/mesh-sample", &programs.join("mesh-sample"))
            .during("image")?
            .linked_program("usr/bin/curl", Path::new("/usr/bin/curl"))
            .during("image")?
            .linked_program("bin/busybox", Path::new("/usr/bin/busybox"))
            .during("image")?
            .text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
            .text("etc/nsswitch.conf", "hosts: files dns\n")
            .folder("tmp", 0o1777);
        // Names are found by libraries that nobody links to.
        let image = ["libnss_dns.so.2", "libnss_files.so.2", "libresolv.so.2"].iter().fold(image, |image, library| {
            let from = Path::new("/lib/x86_64-linux-gnu").join(library);
            if from.exists() { image.program(&from.to_string_lossy(), &from) } else { image }
        });
        let names = [
            "sh", "sleep", "cat", "echo", "date", "wget", "nc", "seq", "true", "false", "ls", "env", "nslookup",
            "kill", "id", "hostname", "head", "tail", "grep", "touch", "test", "printf", "timeout", "httpd", "mkdir",
            "ping",
        ];
        Ok(names.iter().fold(image, |image, name| image.link(&format!("bin/{name}"), "busybox")))
    };
    let mut all = vec![
        with_tools("hashicorp/http-echo:1.0")?.script("bin/http-echo", HTTP_ECHO).entrypoint(&["/bin/http-echo"]),
        with_tools("curlimages/curl:8.10.1")?.command(&["sleep", "infinity"]),
    ];
    let mut sample = with_tools("weft/sample:0.1.0")?.script("bin/sample", SAMPLE).entrypoint(&["/bin/sample"]);
    for name in ["auth", "user", "product", "payment", "gateway", "flaky"] {
        sample = sample.also_named(&format!("buoyantio/bb-{name}:v0.0.6"));
    }
    all.push(sample);
    Ok(all)
}
