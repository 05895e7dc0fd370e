//! Looks at Postgres for the readers who wait until it shows what is published; see [`crate::live::visibility`].

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::snapshot::{self, Error};
use crate::core::backoff::Backoff;
use crate::live::visibility::{Extent, Look, Taken, Visibility};
use crate::postgres::Database;
use crate::redis::store::Store;

/// First and longest pause between two looks while a commit is not shown, or a server does not answer.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));

/// Shortest time between two reads of all that is published, unless a reader that begins asks for it.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Answers readers until `stop`. While none asks, it does nothing; all that ask meanwhile share the next look.
pub async fn run(database: Database, store: Store, visibility: Visibility, stop: CancellationToken) {
    let mut backoff = Backoff::new(PAUSE.0, PAUSE.1);
    let mut looked = None;
    let work = async {
        loop {
            let taken = visibility.take();
            if taken.is_empty() {
                backoff.reset();
                visibility.wished().await;
                continue;
            }
            if answer(&database, &store, &visibility, taken, &mut looked).await {
                let pause = tokio::time::sleep(backoff.next());
                // Readers of other commits do not wait for this one.
                tokio::select! {
                    () = pause => {}
                    () = visibility.wished() => {}
                }
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

/// Answers wishes as far as Postgres shows what they are about. Returns whether any are left.
async fn answer(
    database: &Database,
    store: &Store,
    visibility: &Visibility,
    mut taken: Taken,
    looked: &mut Option<Instant>,
) -> bool {
    if !taken.has_looks() {
        // Nearly always everything is shown by now.
        let snapshot = match snapshot::current(database).await {
            Ok(snapshot) => snapshot,
            Err(error) => return postpone(visibility, taken, &error),
        };
        if !visibility.answer(taken, Look::of(snapshot)) {
            return false;
        }
        if looked.is_some_and(|looked| looked.elapsed() < LOOK_INTERVAL) {
            return true;
        }
        taken = visibility.take();
    }
    *looked = Some(Instant::now());
    match look(database, store).await {
        Ok(look) => visibility.answer(taken, look),
        Err(error) => postpone(visibility, taken, &error),
    }
}

fn postpone(visibility: &Visibility, taken: Taken, error: &Error) -> bool {
    tracing::debug!(
        cause = crate::telemetry::chain(error),
        "live events wait until Postgres and Redis answer"
    );
    visibility.keep(taken);
    true
}

async fn look(database: &Database, store: &Store) -> Result<Look, Error> {
    // In this order: what is published later may be neither in the window nor in the snapshot.
    let (view, window) = store.window().await?;
    let snapshot = snapshot::behind(database, &view).await?;
    let extent = Extent {
        epoch: view.epoch,
        position: view.position,
        window,
    };
    Ok(Look::behind(extent, snapshot))
}
