//! An upstream may answer before it has read the whole request, and close. Its reset then meets our next write, while the answer
//! still lies in the kernel's queue; a codec that gives up at the failed write never reads it. So a write that fails is taken
//! for done and its bytes for lost, and it is reading, which comes to the same break after the answer, that tells.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use weft_tls::MeshStream;

pub struct Early {
    io: MeshStream,
    /// A write failed: nothing more is written, and the end of what is read is no clean one.
    broken: Option<io::ErrorKind>,
}

impl Early {
    pub fn new(io: MeshStream) -> Self {
        Self { io, broken: None }
    }

    pub fn into_inner(self) -> MeshStream {
        self.io
    }

    fn written(&mut self, result: io::Result<usize>, asked: usize) -> io::Result<usize> {
        result.or_else(|error| {
            self.broken = Some(error.kind());
            Ok(asked)
        })
    }
}

impl AsyncRead for Early {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        match (&polled, self.broken) {
            // The failed write took the socket's error with it: what is left looks like an end.
            (Poll::Ready(Ok(())), Some(kind)) if buf.filled().len() == before => Poll::Ready(Err(kind.into())),
            _ => polled,
        }
    }
}

impl AsyncWrite for Early {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.broken.is_some() {
            return Poll::Ready(Ok(buf.len()));
        }
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        polled.map(|result| self.written(result, buf.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let asked = bufs.iter().map(|b| b.len()).sum();
        if self.broken.is_some() {
            return Poll::Ready(Ok(asked));
        }
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        polled.map(|result| self.written(result, asked))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.broken.is_some() {
            return Poll::Ready(Ok(()));
        }
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        polled.map(|result| self.written(result.map(|()| 0), 0).map(drop))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
