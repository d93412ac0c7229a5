//! rustls' unbuffered connections behind one type, and the one loop that drives their states.

use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, Error, ServerConfig};

use crate::verify::PeerIdentity;

pub(super) enum Session {
    Plain,
    Server(Box<UnbufferedServerConnection>),
    Client(Box<UnbufferedClientConnection>),
}

/// A buffer that keeps its length, so that reusing it does not clear it again.
#[derive(Default)]
pub(super) struct Out {
    bytes: Vec<u8>,
    used: usize,
}

impl Out {
    pub(super) fn clear(&mut self) {
        self.used = 0;
    }

    pub(super) fn filled(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or_default()
    }

    fn room(&mut self, need: usize) -> &mut [u8] {
        if self.bytes.len() - self.used < need {
            self.bytes.resize(self.used + need, 0);
        }
        &mut self.bytes[self.used..]
    }
}

#[derive(Clone, Copy)]
pub(super) enum Send<'a> {
    Nothing,
    Data(&'a [u8]),
    CloseNotify,
}

/// What a pump of the incoming bytes ended with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ended {
    /// Everything complete was consumed.
    Idle,
    /// The peer said that it sends no more.
    PeerClosed,
}

enum Step {
    Again,
    Done,
    PeerClosed,
}

impl Session {
    pub(super) fn server(config: Arc<ServerConfig>) -> Result<Self, Error> {
        Ok(Self::Server(Box::new(UnbufferedServerConnection::new(config)?)))
    }

    pub(super) fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, Error> {
        Ok(Self::Client(Box::new(UnbufferedClientConnection::new(config, name)?)))
    }

    fn common(&self) -> Option<&CommonState> {
        match self {
            Self::Plain => None,
            Self::Server(c) => Some(c),
            Self::Client(c) => Some(c),
        }
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.common().is_some_and(CommonState::is_handshaking)
    }

    pub(super) fn alpn(&self) -> Option<&[u8]> {
        self.common()?.alpn_protocol()
    }

    pub(super) fn peer(&self) -> Option<Arc<PeerIdentity>> {
        self.common()?.peer_certificates()?.first().map(PeerIdentity::known)
    }

    /// Feeds `incoming`, hands plaintext to `plain`, appends what must be sent to `out`. `incoming` must begin with what
    /// the last pump did not consume. The first number is how much of it this one consumed, also after an error.
    pub(super) fn pump(
        &mut self,
        incoming: &mut [u8],
        send: Send<'_>,
        out: &mut Out,
        mut plain: impl FnMut(&[u8]),
    ) -> (usize, Result<Ended, Error>) {
        let mut consumed = 0;
        let mut ended = Ended::Idle;
        loop {
            let rest = &mut incoming[consumed..];
            let (discard, step) = match self {
                Self::Plain => return (consumed, Ok(ended)),
                Self::Server(c) => step(c.process_tls_records(rest), send, out, &mut plain),
                Self::Client(c) => step(c.process_tls_records(rest), send, out, &mut plain),
            };
            consumed += discard;
            match step {
                Ok(Step::Again) => {}
                Ok(Step::PeerClosed) => ended = Ended::PeerClosed,
                Ok(Step::Done) => return (consumed, Ok(ended)),
                Err(error) => return (consumed, Err(error)),
            }
        }
    }

    /// The alert rustls wants to send after an error. Nothing may be pumped after that: rustls would look at the same
    /// bad bytes again and panic over a second alert. It looks at input only when it has nothing left to send.
    pub(super) fn last_words(&mut self, incoming: &mut [u8], out: &mut Out) {
        while self.common().is_some_and(CommonState::wants_write) {
            let (_, step) = match self {
                Self::Plain => return,
                Self::Server(c) => step(c.process_tls_records(incoming), Send::Nothing, out, &mut |_: &[u8]| {}),
                Self::Client(c) => step(c.process_tls_records(incoming), Send::Nothing, out, &mut |_: &[u8]| {}),
            };
            if step.is_err() {
                return;
            }
        }
    }
}

fn step<D>(
    status: UnbufferedStatus<'_, '_, D>,
    send: Send<'_>,
    out: &mut Out,
    plain: &mut impl FnMut(&[u8]),
) -> (usize, Result<Step, Error>) {
    let mut discard = status.discard;
    let step = match status.state {
        Err(error) => Err(error),
        Ok(ConnectionState::ReadTraffic(mut traffic)) => {
            let mut result = Ok(Step::Again);
            while let Some(record) = traffic.next_record() {
                match record {
                    Ok(record) => {
                        discard += record.discard;
                        plain(record.payload);
                    }
                    Err(error) => {
                        result = Err(error);
                        break;
                    }
                }
            }
            result
        }
        Ok(ConnectionState::EncodeTlsData(mut data)) => fill(out, 512, |room| {
            data.encode(room).map_err(|e| match e {
                EncodeError::InsufficientSize(InsufficientSizeError { required_size }) => Short::By(required_size),
                EncodeError::AlreadyEncoded => Short::Never,
            })
        }),
        Ok(ConnectionState::TransmitTlsData(data)) => {
            // `out` is always sent in order, so this is the same as having sent it.
            data.done();
            Ok(Step::Again)
        }
        Ok(ConnectionState::WriteTraffic(mut traffic)) => match send {
            Send::Nothing => Ok(Step::Done),
            Send::Data(bytes) => {
                let records = bytes.len() / (16 * 1024) + 1;
                fill(out, bytes.len() + records * 64, |room| traffic.encrypt(bytes, room).map_err(Into::into))
                    .map(|_| Step::Done)
            }
            Send::CloseNotify => {
                fill(out, 128, |room| traffic.queue_close_notify(room).map_err(Into::into)).map(|_| Step::Done)
            }
        },
        Ok(ConnectionState::PeerClosed) => Ok(Step::PeerClosed),
        // BlockedHandshake, Closed, and early data, which no config of ours accepts.
        Ok(_) => Ok(Step::Done),
    };
    (discard, step)
}

enum Short {
    By(usize),
    Never,
}

impl From<EncryptError> for Short {
    fn from(error: EncryptError) -> Self {
        match error {
            EncryptError::InsufficientSize(InsufficientSizeError { required_size }) => Self::By(required_size),
            EncryptError::EncryptExhausted => Self::Never,
        }
    }
}

fn fill(out: &mut Out, guess: usize, mut write: impl FnMut(&mut [u8]) -> Result<usize, Short>) -> Result<Step, Error> {
    let mut need = guess;
    loop {
        match write(out.room(need)) {
            Ok(n) => {
                out.used += n;
                return Ok(Step::Again);
            }
            Err(Short::By(size)) if size > need => need = size,
            Err(_) => return Err(Error::EncryptError),
        }
    }
}
