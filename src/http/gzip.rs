//! Compressed responses and uploads, counted with their bytes before and after, and their time.

use std::io::{self, Read as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use hyper::header::HeaderMap;

use super::error::Error;
use super::heavy::{self, Turn};
use super::request::header;
use crate::telemetry::metrics::{Direction, Metrics};

/// The result of compressing or inflating.
#[derive(Debug)]
pub struct Gzip {
    pub bytes: Vec<u8>,
    pub took: Duration,
}

/// Compresses a response (level 1 fastest to 9 smallest).
pub async fn compress(plain: Vec<u8>, level: u32, metrics: &Arc<Metrics>) -> Result<Gzip, Error> {
    let metrics = metrics.clone();
    let compressed = off_runtime(move || {
        let started = Instant::now();
        let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 4), Compression::new(level));
        encoder.write_all(&plain)?;
        let (bytes, took) = (encoder.finish()?, started.elapsed());
        metrics.gzip.add(Direction::Answer, plain.len(), bytes.len(), took);
        Ok(Gzip { bytes, took })
    });
    compressed
        .await?
        .map_err(|error: io::Error| Error::internal(format!("cannot compress a response: {error}")))
}

/// Inflates an upload to at most one byte more than the limit. The inner error is the decoder's.
pub(super) async fn inflate(
    compressed: impl AsRef<[u8]> + Send + 'static,
    bytes_max: usize,
    turn: Turn,
    metrics: &Arc<Metrics>,
) -> Result<io::Result<Gzip>, Error> {
    let metrics = metrics.clone();
    heavy::run(turn, move || {
        let compressed = compressed.as_ref();
        let started = Instant::now();
        let bytes = inflate_within(compressed, bytes_max)?;
        let took = started.elapsed();
        metrics.gzip.add(Direction::Upload, bytes.len(), compressed.len(), took);
        Ok(Gzip { bytes, took })
    })
    .await
}

fn inflate_within(compressed: &[u8], bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    MultiGzDecoder::new(compressed)
        .take(bytes_max as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Runs CPU-bound work outside the async runtime.
async fn off_runtime<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::internal(format!("compressing or inflating failed: {error}")))
}

/// Whether `Accept-Encoding` allows gzip (RFC 9110, section 12.5.3).
pub fn is_accepted(headers: &HeaderMap) -> bool {
    header(headers, "accept-encoding").is_some_and(accepts)
}

fn accepts(accepted: &str) -> bool {
    let weight_of = |wanted: &str| {
        accepted.split(',').find_map(|coding| {
            let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
            let (_, q) = weight.split_once('=').unwrap_or(("q", "1"));
            let is_it = name.trim().eq_ignore_ascii_case(wanted);
            is_it.then(|| q.trim().parse::<f32>().is_ok_and(|q| q > 0.0))
        })
    };
    // An explicit coding takes precedence over the wildcard.
    weight_of("gzip").or_else(|| weight_of("*")).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inflate_stops_after_the_limit() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&[b' '; 100_000]).expect("written");
        let bomb = encoder.finish().expect("finished");
        assert!(bomb.len() < 1000);
        assert_eq!(inflate_within(&bomb, 100_000).expect("within").len(), 100_000);
        assert_eq!(inflate_within(&bomb, 50_000).expect("beyond").len(), 50_001);
        assert!(inflate_within(b"no gzip", 10).is_err());
    }

    #[test]
    fn gzip_requires_a_positive_weight() {
        for accepted in [
            "gzip",
            "GZIP",
            "br, gzip",
            "deflate;q=0, gzip;q=0.5",
            "*",
            "*;q=0.1",
            "gzip; q=1.0, *;q=0",
        ] {
            assert!(accepts(accepted), "{accepted}");
        }
        for accepted in [
            "",
            "br",
            "gzip;q=0",
            "gzip;q=0.0, *",
            "*;q=0",
            "identity",
            "gzip;q=x",
            "xgzip",
        ] {
            assert!(!accepts(accepted), "{accepted}");
        }
    }
}
