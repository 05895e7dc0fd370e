//! Which tenants use more than their budget of bytes in Redis. The publisher lists them; each process reads the list every
//! second, so that no request has to.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use super::Error;
use crate::core::lane::Lanes;
use crate::redis::store::Store;
use crate::telemetry::metrics::{LimitedBy, Metrics};

/// How often the list is read.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long a list counts while none can be read.
const LIFETIME: Duration = Duration::from_secs(60);

/// What each tenant beyond its budget uses, and what it may.
type Exceeded = Arc<RwLock<HashMap<String, (u64, u64)>>>;

/// The tenants beyond their budget, as last read. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Budgets {
    exceeded: Lanes<Exceeded>,
    metrics: Arc<Metrics>,
}

impl Budgets {
    /// No tenant of these lanes is beyond its budget until their lists are read.
    pub fn new<T>(lanes: &Lanes<T>, metrics: Arc<Metrics>) -> Self {
        Self {
            exceeded: lanes.map(|_, _| Exceeded::default()),
            metrics,
        }
    }

    /// Whether a tenant may write more.
    ///
    /// # Errors
    /// [`Error::BudgetExceeded`].
    pub fn check(&self, tenant: &str) -> Result<(), Error> {
        let Some((used, budget)) = self.exceeded.of(tenant).read().get(tenant).copied() else {
            return Ok(());
        };
        self.metrics.http.limited(LimitedBy::Budget);
        Err(Error::BudgetExceeded { budget, used })
    }

    /// Reads the list of a lane until `stop`.
    pub async fn run(self, lane: &str, store: Store, stop: CancellationToken) {
        let Some(list) = self.exceeded.named(lane) else { return };
        let reading = async {
            let mut read_at = Instant::now();
            loop {
                match store.exceeded().await {
                    Ok(exceeded) => {
                        let exceeded = exceeded.into_iter();
                        *list.write() = exceeded.map(|(tenant, it)| (tenant, (it.used, it.budget))).collect();
                        read_at = Instant::now();
                    }
                    Err(error) if read_at.elapsed() > LIFETIME => {
                        tracing::debug!(%error, "tenants beyond their budget not read");
                        list.write().clear();
                    }
                    Err(error) => tracing::debug!(%error, "tenants beyond their budget not read"),
                }
                tokio::time::sleep(INTERVAL).await;
            }
        };
        tokio::select! {
            () = reading => {}
            () = stop.cancelled() => {}
        }
    }
}
