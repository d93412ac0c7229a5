//! A message's body as it comes from the wire, whatever is spoken on it.

use super::exchange::BodyError;
use super::http1::client::Download;
use super::http1::server::Upload;
use super::http2::Http2Body;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};

pub enum Wire {
    /// A request's, and an answer's, over HTTP/1.
    Upload(Upload),
    Download(Download),
    Http2(Http2Body),
}

impl Wire {
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Wire::Upload(body) => body.poll_frame(cx),
            Wire::Download(body) => body.poll_frame(cx),
            Wire::Http2(body) => body.poll_frame(cx),
        }
    }
}

impl Body for Wire {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Wire::poll_frame(&mut self, cx)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Wire::Upload(body) => body.is_end_stream(),
            Wire::Download(body) => body.is_end_stream(),
            Wire::Http2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Wire::Upload(body) => body.size_hint(),
            Wire::Download(body) => body.size_hint(),
            Wire::Http2(body) => body.size_hint(),
        }
    }
}
