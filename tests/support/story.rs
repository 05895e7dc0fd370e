//! Random stories that come from a seed: each can be replayed alone, and one that fails is made smaller.

use std::collections::VecDeque;
use std::fmt::{Debug, Write as _};
use std::sync::Mutex;

use proptest::strategy::{BoxedStrategy, Strategy, ValueTree};
use proptest::test_runner::{Config as ProptestConfig, RngAlgorithm, TestRng, TestRunner};

/// Stories that go on side by side, each in a tenant of its own at a time.
const WORKERS: usize = 6;

/// Stories after which a worker goes on in a new tenant.
const TENANT_CASES: usize = 40;

/// Tries to make a failing story smaller.
const SHRINKS_MAX: usize = 200;

/// The seed, unless the environment says otherwise.
const SEED: u64 = 7;

/// One of several, whose number is known only when it comes to it.
#[derive(Clone, Copy)]
pub(crate) struct Pick(pub(crate) u8);

impl Debug for Pick {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl Pick {
    pub(crate) fn index(self, count: usize) -> usize {
        usize::from(self.0) % count
    }

    pub(crate) fn of<T>(self, all: &[T]) -> &T {
        &all[self.index(all.len())]
    }

    pub(crate) fn of_mut<T>(self, all: &mut [T]) -> &mut T {
        let index = self.index(all.len());
        &mut all[index]
    }
}

/// The source of chance for one story.
fn runner(seed: u64, number: usize) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&(number as u64).to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    TestRunner::new_with_rng(ProptestConfig::default(), rng)
}

/// A number of the environment.
pub(crate) fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is {text}, which is no number")),
    )
}

/// The seed of this run.
pub(crate) fn seed() -> u64 {
    from_environment("POSDUIF_MODEL_SEED").unwrap_or(SEED)
}

/// Where stories are played.
pub(crate) trait Theatre {
    type Tenant;
    type Op: Clone + Debug;

    /// The filter by which the tests of this theatre run.
    const FILTER: &str;

    /// The story of a number.
    fn story(number: usize) -> BoxedStrategy<Vec<Self::Op>>;

    /// A tenant for stories one after the other.
    fn tenant(&self) -> impl Future<Output = Self::Tenant>;

    /// Ends a tenant.
    fn leave(&self, tenant: Self::Tenant) -> impl Future<Output = ()>;

    /// Plays a story, and says what was wrong.
    fn play(&self, tenant: &Self::Tenant, ops: &[Self::Op]) -> impl Future<Output = Result<(), String>>;
}

/// A failing story, and why it fails.
pub(crate) struct Failure {
    pub(crate) number: usize,
    pub(crate) reason: String,
}

/// Plays stories side by side until one fails.
pub(crate) async fn stories<T: Theatre>(theatre: &T, seed: u64, numbers: VecDeque<usize>) -> Option<Failure> {
    let workers = WORKERS.min(numbers.len());
    let numbers = Mutex::new(numbers);
    let failure: Mutex<Option<Failure>> = Mutex::default();
    // Not tasks of their own: a phone's file belongs to one thread.
    let workers = (0..workers).map(async |_| {
        let mut tenant = theatre.tenant().await;
        let mut played = 0;
        loop {
            let next = numbers.lock().unwrap().pop_front();
            let Some(number) = next.filter(|_| failure.lock().unwrap().is_none()) else {
                return;
            };
            if played == TENANT_CASES {
                let next = theatre.tenant().await;
                theatre.leave(std::mem::replace(&mut tenant, next)).await;
                played = 0;
            }
            played += 1;
            let ops = T::story(number).new_tree(&mut runner(seed, number)).unwrap().current();
            if let Err(reason) = theatre.play(&tenant, &ops).await {
                failure.lock().unwrap().get_or_insert(Failure { number, reason });
            }
        }
    });
    futures_util::future::join_all(workers).await;
    failure.into_inner().unwrap()
}

/// Plays a failing story again and again with less in it, alone, and describes the least that still fails.
pub(crate) async fn shrunk<T: Theatre>(theatre: &T, seed: u64, failure: Failure) -> String {
    let Failure { number, reason } = failure;
    let mut tree = T::story(number).new_tree(&mut runner(seed, number)).unwrap();
    let mut least = (tree.current(), reason);
    let mut is_repeatable = false;
    for _ in 0..SHRINKS_MAX {
        let ops = tree.current();
        let tenant = theatre.tenant().await;
        let moved = match theatre.play(&tenant, &ops).await {
            Err(reason) => {
                is_repeatable = true;
                least = (ops, reason);
                tree.simplify()
            }
            Ok(()) => tree.complicate(),
        };
        if !moved {
            break;
        }
    }
    let mut text = format!("story {number} of the seed {seed}: {}\n", least.1);
    if !is_repeatable {
        text.push_str("It passed when replayed alone, so this is the whole of it:\n");
    }
    for op in &least.0 {
        writeln!(text, "  {op:?}").unwrap();
    }
    write!(
        text,
        "again: POSDUIF_MODEL_SEED={seed} POSDUIF_MODEL_CASE={number} cargo nextest run {}",
        T::FILTER
    )
    .unwrap();
    text
}

/// The numbers of the stories of a run: of so many, or as many as the environment says, every `step`th from `first` on; or the
/// one that it names.
pub(crate) fn numbers(cases: usize, first: usize, step: usize) -> VecDeque<usize> {
    let cases = from_environment("POSDUIF_MODEL_CASES").map_or(cases, |cases| cases as usize);
    match from_environment("POSDUIF_MODEL_CASE") {
        Some(number) => VecDeque::from([number as usize]),
        None => (first..cases.max(first + 1)).step_by(step).collect(),
    }
}

/// What is boxed by [`Theatre::story`].
pub(crate) fn boxed<T: Debug + 'static>(story: impl Strategy<Value = T> + 'static) -> BoxedStrategy<T> {
    story.boxed()
}
