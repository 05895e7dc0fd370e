//! Rates of requests: what an address, a user, a device and a tenant may use, by the cost of each route.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::auth::Principal;
use crate::config::{self, client_network};
use crate::core::rate::Rate;
use crate::http::error::{Code, Error};
use crate::telemetry::metrics::{LimitedBy, Metrics};

/// Tokens that the verification of a signature of another provider takes from the bucket of its address.
pub(crate) const VERIFICATION_COST: u32 = 5;

/// Bytes of an upload that take a token. An upload of the largest size so takes a quarter of a device's full bucket: one of
/// 20 edits of a large message needs 2 kB on the wire and 6 MB in Redis.
const BYTES_PER_TOKEN: usize = 32 * 1024;

/// What the bytes of an upload cost beside its route.
pub(crate) fn cost_of_bytes(bytes: usize) -> u32 {
    u32::try_from(bytes / BYTES_PER_TOKEN).unwrap_or(u32::MAX)
}

/// The rates of a process.
#[derive(Debug)]
pub struct Rates {
    address: Option<Rate<IpAddr>>,
    user: Option<Rate<(Arc<str>, Uuid)>>,
    device: Option<Rate<(Arc<str>, Arc<str>)>>,
    tenant: Option<Rate<Arc<str>>>,
    metrics: Arc<Metrics>,
}

impl Rates {
    pub fn new(settings: &config::Rates, metrics: Arc<Metrics>) -> Self {
        let window = Duration::from_secs(settings.burst_seconds);
        Self {
            address: rate(settings.address_per_second, window),
            user: rate(settings.user_per_second, window),
            device: rate(settings.device_per_second, window),
            tenant: rate(settings.tenant_per_second, window),
            metrics,
        }
    }

    /// Takes the tokens of a request from the bucket of its address, before its credentials are checked.
    ///
    /// # Errors
    /// 429 with the time until there are so many.
    pub fn take_of_address(&self, address: IpAddr, cost: u32) -> Result<(), Error> {
        let taken = take(self.address.as_ref(), || client_network(address), cost);
        taken.map_err(|wait| self.limited(LimitedBy::Address, wait))
    }

    /// Takes the tokens of a request from the buckets of its device, its user and its tenant.
    ///
    /// # Errors
    /// 429 with the time until there are so many.
    pub fn take_of_principal(&self, principal: &Principal, cost: u32) -> Result<(), Error> {
        self.try_take(principal, cost)
            .map_err(|(by, wait)| self.limited(by, wait))
    }

    /// Takes the tokens of the bytes of an upload, which are known when it was read.
    ///
    /// # Errors
    /// 429 with the time until there are so many.
    pub fn take_of_bytes(&self, principal: &Principal, bytes: usize) -> Result<(), Error> {
        self.take_of_principal(principal, cost_of_bytes(bytes))
    }

    /// Waits for the tokens of an item of a WebSocket: its client gets no result, and its next frames are not read, until
    /// there are so many.
    pub async fn wait_for_principal(&self, principal: &Principal, cost: u32) {
        let mut is_counted = false;
        while let Err((by, wait)) = self.try_take(principal, cost) {
            if !is_counted {
                self.metrics.http.limited(by);
                is_counted = true;
            }
            tokio::time::sleep(wait).await;
        }
    }

    fn try_take(&self, principal: &Principal, cost: u32) -> Result<(), (LimitedBy, Duration)> {
        let tenant = || Arc::<str>::from(principal.tenant().name.as_str());
        if let Principal::Device(device) = principal {
            let key = || (tenant(), Arc::from(&*device.device_id));
            take(self.device.as_ref(), key, cost).map_err(|wait| (LimitedBy::Device, wait))?;
        }
        let key = || (tenant(), principal.user_id());
        take(self.user.as_ref(), key, cost).map_err(|wait| (LimitedBy::User, wait))?;
        take(self.tenant.as_ref(), tenant, cost).map_err(|wait| (LimitedBy::Tenant, wait))
    }

    fn limited(&self, by: LimitedBy, wait: Duration) -> Error {
        self.metrics.http.limited(by);
        let text = format!("too many requests of this {}; try again later", by.as_str());
        // Rounded up: an earlier attempt would be refused again.
        let seconds = wait.as_millis().div_ceil(1000).try_into().unwrap_or(u32::MAX);
        Error {
            retry_after_seconds: Some(seconds),
            ..Error::new(Code::RATE_LIMITED, text)
        }
    }
}

/// A rate; `None` for 0, which disables it.
fn rate<K: std::hash::Hash + Eq>(per_second: u32, window: Duration) -> Option<Rate<K>> {
    (per_second > 0).then(|| Rate::per_second(per_second, window))
}

fn take<K: std::hash::Hash + Eq>(rate: Option<&Rate<K>>, key: impl FnOnce() -> K, cost: u32) -> Result<(), Duration> {
    match rate {
        Some(rate) if cost > 0 => rate.take_many(key(), cost),
        _ => Ok(()),
    }
}
