//! The address of a client, also behind proxies.

use std::net::{IpAddr, SocketAddr};

use hyper::header::HeaderMap;

use crate::config::Network;

/// The client's address: the peer's or, while that is a trusted proxy, the one that it forwards for. Each proxy appends
/// its own peer to `X-Forwarded-For`, so the rightmost address that is not trusted is the client; anything left of it can
/// be forged.
pub fn client(peer: IpAddr, headers: &HeaderMap, trusted: &[Network]) -> IpAddr {
    let mut address = peer.to_canonical();
    let values = headers.get_all("x-forwarded-for").iter().rev();
    // A value that is not text is a hop without an address.
    let mut hops = values.flat_map(|value| value.to_str().unwrap_or_default().rsplit(','));
    while trusted.iter().any(|network| network.contains(address)) {
        match hops.next().and_then(parse) {
            Some(hop) => address = hop,
            None => break,
        }
    }
    address
}

/// The peer, if it forwards for a client as a proxy does and is near, but not trusted: all its clients count as one.
pub fn unlisted_proxy(peer: IpAddr, headers: &HeaderMap, trusted: &[Network]) -> Option<IpAddr> {
    let peer = peer.to_canonical();
    let forwards = headers.contains_key("x-forwarded-for") || headers.contains_key("forwarded");
    let is_listed = || trusted.iter().any(|network| network.contains(peer));
    (forwards && is_near(peer) && !is_listed()).then_some(peer)
}

/// Whether an address is of this machine or of a private network.
fn is_near(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_loopback() || address.is_private() || address.is_link_local(),
        IpAddr::V6(address) => address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local(),
    }
}

/// Parses an address; some proxies add a port.
fn parse(hop: &str) -> Option<IpAddr> {
    let hop = hop.trim();
    let with_port = || Some(hop.parse::<SocketAddr>().ok()?.ip());
    let address: IpAddr = hop.parse().ok().or_else(with_port)?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_peer_that_forwards_is_an_unlisted_proxy() {
        let trusted = [Network::try_from("10.0.0.0/8".to_owned()).expect("a network")];
        let found = |peer: &str, name: &'static str| {
            let mut headers = HeaderMap::new();
            headers.append(name, "5.6.7.8".parse().expect("a header"));
            super::unlisted_proxy(peer.parse().expect("an address"), &headers, &trusted).is_some()
        };
        for near in [
            "127.0.0.1",
            "172.18.0.1",
            "192.168.1.1",
            "::1",
            "fd00::1",
            "::ffff:172.18.0.1",
        ] {
            assert!(found(near, "x-forwarded-for") && found(near, "forwarded"), "{near}");
            assert!(!found(near, "host"), "{near}");
        }
        // Listed ones, and strangers, who may write any header.
        for other in ["10.0.0.1", "203.0.113.7", "2001:db8::1"] {
            assert!(!found(other, "x-forwarded-for"), "{other}");
        }
    }

    #[test]
    fn client_is_the_last_untrusted_hop() {
        let trusted: Vec<Network> = ["10.0.0.0/8", "::1"]
            .map(|text| Network::try_from(text.to_owned()).expect("a network"))
            .into();
        let client = |peer: &str, forwarded: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in forwarded {
                headers.append("x-forwarded-for", value.parse().expect("a header"));
            }
            super::client(peer.parse().expect("an address"), &headers, &trusted).to_string()
        };
        // An untrusted peer cannot forward.
        assert_eq!(client("1.2.3.4", &["5.6.7.8"]), "1.2.3.4");
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &["5.6.7.8"]), "5.6.7.8");
        assert_eq!(client("::ffff:10.0.0.1", &["5.6.7.8"]), "5.6.7.8");
        assert_eq!(client("10.0.0.1", &["6.6.6.6, 5.6.7.8 , 10.0.0.2"]), "5.6.7.8");
        assert_eq!(client("::1", &["6.6.6.6", "5.6.7.8,10.0.0.2"]), "5.6.7.8");
        assert_eq!(client("10.0.0.1", &["5.6.7.8:4711"]), "5.6.7.8");
        assert_eq!(client("10.0.0.1", &["[2001:db8::1]:4711"]), "2001:db8::1");
        assert_eq!(client("10.0.0.1", &["10.0.0.3, 10.0.0.2"]), "10.0.0.3");
        for bad in ["unknown", "", "5.6.7.8, ", "5.6.7.8, x"] {
            assert_eq!(client("10.0.0.1", &[bad]), "10.0.0.1", "{bad}");
        }
    }
}
