//! Who may come in: for now, who is on this machine.
//!
//! There is no authentication yet, so a gateway that listens on the local machine must make sure that it is really asked
//! from there. A web page can give its own host name this machine's address (DNS rebinding) and then read answers as its
//! own; its requests bear its own name in `Host`, and are refused. A page of another origin that just sends something
//! (CSRF) bears its name in `Origin`, and is refused as well. There are no CORS headers: no other origin may read.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, HeaderName, ORIGIN, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::problem::{Kind, Problem};

/// What every answer says, unless it says something else itself.
const HEADERS: [(HeaderName, &str); 5] = [
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (CACHE_CONTROL, "no-store"),
    (REFERRER_POLICY, "no-referrer"),
    (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// What the gateway insists on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Policy {
    /// Whether only this machine may be asked for, and [`Policy::hosts`].
    pub(crate) local: bool,
    /// Further hosts that may be asked for, without their ports.
    pub(crate) hosts: Arc<[String]>,
}

/// Refuses what is meant for another host or comes from another origin.
pub(crate) async fn guard(State(policy): State<Policy>, request: Request, next: Next) -> Response {
    match policy.check(request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// Adds the headers that every answer has.
pub(crate) async fn headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in HEADERS {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

impl Policy {
    fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        let text = |name| headers.get(name).map(|value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()));
        // HTTP/2 has no Host, but an authority.
        let host = uri.authority().map(|authority| authority.as_str().into()).or_else(|| text(HOST));
        if self.local && !host.as_deref().is_some_and(|host| is_local(host) || self.knows(host)) {
            let host = host.as_deref().unwrap_or_default();
            let detail = format!(
                "the host {host:?} is not this machine: ask for localhost, 127.0.0.1 or [::1], or name it in http.allowed_hosts"
            );
            return Err(Problem::new(Kind::Misdirected, detail));
        }
        if let Some(origin) = text(ORIGIN) {
            let place = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
            if !place.is_some_and(|place| host.as_deref().is_some_and(|host| host.eq_ignore_ascii_case(place))) {
                let detail = format!("the origin {origin:?} is not the one that was asked");
                return Err(Problem::new(Kind::ForeignOrigin, detail));
            }
        }
        Ok(())
    }
}

impl Policy {
    fn knows(&self, host: &str) -> bool {
        let name = host.rsplit_once(':').filter(|(_, port)| is_port(port)).map_or(host, |(name, _)| name);
        self.hosts.iter().any(|known| known.eq_ignore_ascii_case(name))
    }
}

/// Whether a host, with or without a port, is this machine whatever a name server says.
fn is_local(host: &str) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        let port = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return port && address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if is_port(port) => name,
        Some(_) => return false,
        None => host,
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g1_only_this_machine_is_local() {
        for host in ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8080", "127.3.2.1:9"] {
            assert!(is_local(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "localhost:",
            "localhost:8080:1",
            "[::1].evil.example",
            "[::2]",
            "::1",
            "10.0.0.1",
            "user@localhost",
        ] {
            assert!(!is_local(host), "{host}");
        }
    }

    #[test]
    fn g1_other_origins_are_refused_also_from_afar() {
        let check = |local, host: &'static str, origin: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static(host));
            headers.extend(origin.map(|origin| (ORIGIN, HeaderValue::from_static(origin))));
            Policy { local, hosts: Arc::new([]) }
                .check(&Uri::from_static("/v1/runs"), &headers)
                .err()
                .map(|problem| problem.kind.status().as_u16())
        };
        assert_eq!(check(true, "localhost:8080", None), None);
        assert_eq!(check(true, "localhost:8080", Some("http://localhost:8080")), None);
        assert_eq!(check(true, "localhost:8080", Some("http://localhost:3000")), Some(403));
        assert_eq!(check(true, "localhost:8080", Some("null")), Some(403));
        assert_eq!(check(true, "evil.example", Some("http://evil.example")), Some(421));
        assert_eq!(check(false, "baton.example", None), None);
        assert_eq!(check(false, "baton.example", Some("https://baton.example")), None);
        assert_eq!(check(false, "baton.example", Some("https://evil.example")), Some(403));
    }

    #[test]
    fn g1_further_hosts_may_be_named() {
        let policy = Policy { local: true, hosts: Arc::from(["gateway".to_owned()]) };
        let ask = |host: &'static str| {
            let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static(host))]);
            policy.check(&Uri::from_static("/v1/runs"), &headers).is_ok()
        };
        assert!(ask("gateway:8080") && ask("Gateway") && ask("localhost:8080"));
        assert!(!ask("evil.example") && !ask("gateway.evil.example:8080"));
    }
}
