//! Compressed answers and uploads, each counted with its bytes before and after, and its time.

use std::io::{self, Read as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;

use super::error::Error;
use crate::telemetry::metrics::{Direction, Metrics};

/// What compressing or inflating came to.
#[derive(Debug)]
pub struct Gzip {
    /// The result.
    pub bytes: Vec<u8>,
    /// How long it took.
    pub took: Duration,
}

/// Compresses an answer (level 1 fastest to 9 smallest).
///
/// # Errors
/// 500, which does not happen.
pub async fn pack(plain: Vec<u8>, level: u32, metrics: &Arc<Metrics>) -> Result<Gzip, Error> {
    let metrics = metrics.clone();
    let packed = aside(move || {
        let started = Instant::now();
        let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 4), Compression::new(level));
        encoder.write_all(&plain)?;
        let (bytes, took) = (encoder.finish()?, started.elapsed());
        metrics.gzip.add(Direction::Answer, plain.len(), bytes.len(), took);
        Ok(Gzip { bytes, took })
    });
    packed
        .await?
        .map_err(|error: io::Error| Error::internal(format!("an answer cannot be compressed: {error}")))
}

/// Inflates an upload to at most one byte more than the bound, whatever it claims to become.
///
/// # Errors
/// 500, which does not happen; within, what the decoder says of bytes that are no gzip.
pub async fn inflate(
    packed: impl AsRef<[u8]> + Send + 'static,
    bytes_max: usize,
    metrics: &Arc<Metrics>,
) -> Result<io::Result<Gzip>, Error> {
    let metrics = metrics.clone();
    aside(move || {
        let packed = packed.as_ref();
        let started = Instant::now();
        let bytes = inflate_within(packed, bytes_max)?;
        let took = started.elapsed();
        metrics.gzip.add(Direction::Upload, bytes.len(), packed.len(), took);
        Ok(Gzip { bytes, took })
    })
    .await
}

fn inflate_within(packed: &[u8], bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    MultiGzDecoder::new(packed)
        .take(bytes_max as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Runs work that keeps a processor busy where it holds up nobody.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::internal(format!("compressing or inflating ended early: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inflating_stops_behind_the_bound() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&[b' '; 100_000]).expect("written");
        let bomb = encoder.finish().expect("finished");
        assert!(bomb.len() < 1000);
        assert_eq!(inflate_within(&bomb, 100_000).expect("within").len(), 100_000);
        assert_eq!(inflate_within(&bomb, 50_000).expect("beyond").len(), 50_001);
        assert!(inflate_within(b"no gzip", 10).is_err());
    }
}
