//! A port of a pod's loopback, by the API server.

use crate::door::{MAX_ANSWER, PATIENCE};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// Its server has to find the pod's node, and that one the pod.
const OPENING: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub struct Forward {
    pub pods: Api<Pod>,
    pub pod: String,
}

impl Forward {
    /// Sends a request of HTTP/1.0 and returns the whole answer, or why there is none.
    pub async fn ask(&self, port: u16, request: &str) -> Result<String, String> {
        let opened = timeout(OPENING, self.pods.portforward(&self.pod, &[port])).await;
        let mut forward =
            opened.map_err(|_| "the port-forward was not opened in time".to_string())?.map_err(|e| match e {
                kube::Error::Api(status) => status.message,
                other => format!("port-forward: {other}"),
            })?;
        let refused = forward.take_error(port);
        let Some(mut stream) = forward.take_stream(port) else { return Err("port-forward gave no stream".into()) };
        let exchange = async {
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            let mut chunk = vec![0; 64 << 10];
            // It may stay open for longer than the answer takes.
            while !is_whole(&answer) && (answer.len() as u64) < MAX_ANSWER {
                match timeout(PATIENCE, stream.read(&mut chunk)).await?? {
                    0 => break,
                    n => answer.extend_from_slice(&chunk[..n]),
                }
            }
            Ok::<_, std::io::Error>(answer)
        };
        let answer = exchange.await;
        let why = match (&answer, refused) {
            (Ok(answer), _) if !answer.is_empty() => None,
            (_, Some(refused)) => timeout(Duration::from_secs(1), refused).await.ok().flatten(),
            _ => None,
        };
        forward.abort();
        match (why, answer) {
            (Some(why), _) => Err(why.trim().to_string()),
            (None, Ok(answer)) => String::from_utf8(answer).map_err(|_| "its answer is no text".to_string()),
            (None, Err(e)) => Err(e.to_string()),
        }
    }
}

/// As long as its head says.
fn is_whole(answer: &[u8]) -> bool {
    let Some(end) = answer.windows(4).position(|w| w == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    length.is_some_and(|length| answer.len() >= end + 4 + length)
}

#[cfg(test)]
mod tests {
    use super::is_whole;

    #[test]
    fn answers_end_where_their_head_says() {
        let answer = "HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        assert!(is_whole(answer.as_bytes()) && !is_whole(&answer.as_bytes()[..answer.len() - 1]));
        assert!(!is_whole(b"HTTP/1.0 200 OK\r\n\r\nabc") && !is_whole(b"HTTP/1.0 200"));
    }
}
