//! Random bits of the operating system, for tokens and tickets.

use crate::feature::Error;

pub(super) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bits = [0; N];
    getrandom::fill(&mut bits).map_err(|error| Error::Internal(format!("no random bits: {error}")))?;
    Ok(bits)
}
