//! Calls whose messages are bytes: what proxies of other versions say.

use tokio::sync::mpsc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(out, &item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        use bytes::Buf;
        let length = from.remaining();
        Ok(Some(from.copy_to_bytes(length).to_vec()))
    }
}

async fn ready(channel: Channel) -> tonic::client::Grpc<Channel> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.expect("a connection");
    grpc
}

pub async fn sign(channel: Channel, request: Vec<u8>) -> Result<Vec<u8>, Status> {
    let path = PathAndQuery::from_static("/weft.v1.Mesh/Sign");
    Ok(ready(channel).await.unary(Request::new(request), path, Raw).await?.into_inner())
}

/// A stream of configuration; what is put into the sender goes out as it is.
pub async fn watch(channel: Channel) -> (mpsc::Sender<Vec<u8>>, Streaming<Vec<u8>>) {
    let (say, said) = mpsc::channel(64);
    let path = PathAndQuery::from_static("/weft.v1.Mesh/Watch");
    let stream = ready(channel).await.streaming(Request::new(ReceiverStream::new(said)), path, Raw).await;
    (say, stream.expect("a stream").into_inner())
}
