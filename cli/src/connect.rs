//! Connections to servers, over TLS where that is asked for.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use openssl::error::ErrorStack;
use openssl::ssl::{HandshakeError, SslConnector, SslMethod};
use openssl::x509::X509;
use openssl::x509::store::{X509Store, X509StoreBuilder};

use crate::out::Fault;
use crate::timed::{Socket, Timed, is_late};
use crate::tls::{plain, resolve};

type Result<T> = std::result::Result<T, Fault>;

/// A connection of any kind.
pub trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// A connection to a host. `name` is what people call it.
pub fn tcp(name: &str, host: &str, port: u16, timeout: Duration) -> Result<TcpStream> {
    let found = resolve(host, port);
    let found = found.map_err(|why| Fault::unknown(format!("{name}: {why}")))?;
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    let tcp = found.iter().find_map(|address| {
        TcpStream::connect_timeout(address, timeout).map_err(|error| last = error).ok()
    });
    tcp.ok_or_else(|| none(name, &last))
}

/// That there is no connection.
pub fn none(name: &str, error: &io::Error) -> Fault {
    if is_late(error) {
        return Fault::unknown(format!("{name}: no connection in time: is the address right?"));
    }
    Fault::unknown(format!("{name}: no connection: {}", plain(error)))
}

/// A connection as it is, or over TLS if there is a host that its certificate has to be for.
pub fn secured<S: Socket + 'static>(
    socket: Timed<S>,
    host: Option<&str>,
    cacert: Option<&Path>,
    name: &str,
) -> Result<Box<dyn Stream>> {
    let Some(host) = host else { return Ok(Box::new(socket)) };
    let failed = |why: &str| Fault::unknown(format!("{name}: {why}"));
    let mut connector =
        SslConnector::builder(SslMethod::tls_client()).map_err(|_| failed("OpenSSL has failed"))?;
    if let Some(file) = cacert {
        // In place of those of the system, which are there already.
        connector.set_cert_store(cas(file)?);
    }
    match connector.build().connect(host, socket) {
        Ok(stream) => Ok(Box::new(stream)),
        Err(HandshakeError::Failure(stream)) if stream.error().io_error().is_some_and(is_late) => {
            Err(failed("no answer in time to the TLS handshake: see --timeout"))
        }
        Err(error) => Err(failed(&format!("TLS: {error}: see --cacert"))),
    }
}

/// The CAs of a file.
fn cas(file: &Path) -> Result<X509Store> {
    let name = file.display();
    let fault = |_: ErrorStack| Fault::usage(format!("--cacert {name}: no certificates there"));
    let pem = std::fs::read(file)
        .map_err(|error| Fault::usage(format!("--cacert {name}: {}", plain(&error))))?;
    let mut store = X509StoreBuilder::new().map_err(fault)?;
    let found = X509::stack_from_pem(&pem).map_err(fault)?;
    if found.is_empty() {
        return Err(fault(ErrorStack::get()));
    }
    for ca in found {
        store.add_cert(ca).map_err(fault)?;
    }
    Ok(store.build())
}
