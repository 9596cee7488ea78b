//! Ports that are known before anybody listens there.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use tokio::net::{TcpListener, TcpSocket};

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1024;

/// A port of the loopback interface that stays ours while nobody listens there: then who connects is refused, and the
/// system gives it to nobody who asks for any.
///
/// Who asks for this very port can listen there, if it allows others to use the address too, as nats-server does: so a
/// server that is killed finds its port free when it comes back.
#[derive(Debug)]
pub(crate) struct Port {
    address: SocketAddr,
    /// Bound, and never listening.
    _holder: TcpSocket,
}

impl Port {
    pub(crate) fn reserve() -> io::Result<Self> {
        let holder = bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0).into())?;
        Ok(Self { address: holder.local_addr()?, _holder: holder })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn listen(&self) -> io::Result<TcpListener> {
        bind(self.address)?.listen(BACKLOG)
    }
}

/// The system lets two sockets that both say so have one port, unless both listen.
fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}
