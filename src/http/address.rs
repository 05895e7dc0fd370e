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
