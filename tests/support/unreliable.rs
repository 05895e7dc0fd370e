//! What lies between a phone and the engine: it does with each request what a story says.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use serde_json::Value;

use crate::phone::{Answer, Http, Lost, Network, Request};

/// What becomes of one request of a phone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is answered.
    Pass,
    /// It never arrives.
    LoseRequest,
    /// It is done, and the answer is lost.
    LoseAnswer,
    /// It arrives twice, and the second answer comes back.
    Twice,
    /// It is done; it arrives once more when the story says so.
    Linger,
    /// The phone dies before sending it.
    DieBefore,
    /// The phone dies before it has stored the answer.
    DieAfter,
}

/// The fates of the next requests.
pub(crate) fn fates() -> impl Strategy<Value = Vec<Fate>> {
    use Fate::*;
    let fate = prop_oneof![
        6 => Just(Pass),
        1 => Just(LoseRequest),
        2 => Just(LoseAnswer),
        1 => Just(Twice),
        1 => Just(Linger),
        1 => Just(DieBefore),
        1 => Just(DieAfter),
    ];
    proptest::collection::vec(fate, 0..5)
}

/// Where an engine listens; another port after each start.
pub(crate) type Address = Arc<Mutex<String>>;

/// Sees each answer, also of those that a phone never gets, and may change it.
pub(crate) type Witness = Box<dyn Fn(&Request, &mut Answer) + Send + Sync>;

/// The network of one phone.
pub(crate) struct Unreliable {
    address: Address,
    http: Mutex<(String, Http)>,
    pub(crate) fates: Mutex<VecDeque<Fate>>,
    /// Requests that arrive once more, much later.
    pub(crate) lingering: Mutex<VecDeque<Request>>,
    pub(crate) has_died: AtomicBool,
    /// The phone went back to an older copy, so that it may use numbers twice.
    pub(crate) was_restored: AtomicBool,
    /// A request got no answer otherwise than by the story, as from an engine that stops.
    pub(crate) is_uncertain: AtomicBool,
    /// The first result of each item.
    pub(crate) results: Mutex<HashMap<String, Value>>,
    pub(crate) violations: Mutex<Vec<String>>,
    witness: Option<Witness>,
}

impl Unreliable {
    pub(crate) fn new(address: Address, witness: Option<Witness>) -> Self {
        let first = address.lock().unwrap().clone();
        Self {
            address,
            http: Mutex::new((first.clone(), Http::new(&format!("http://{first}")))),
            fates: Mutex::default(),
            lingering: Mutex::default(),
            has_died: AtomicBool::new(false),
            was_restored: AtomicBool::new(false),
            is_uncertain: AtomicBool::new(false),
            results: Mutex::default(),
            violations: Mutex::default(),
            witness,
        }
    }

    fn http(&self) -> Http {
        let address = self.address.lock().unwrap().clone();
        let mut http = self.http.lock().unwrap();
        if http.0 != address {
            *http = (address.clone(), Http::new(&format!("http://{address}")));
        }
        http.1.clone()
    }

    /// Sends a request. The response to an upload must give each item its first result, however often it comes.
    pub(crate) async fn send(&self, request: Request) -> Result<Answer, Lost> {
        let seen = self.witness.as_ref().map(|_| request.clone());
        let body = request.body.clone().filter(|_| request.path == "/api/sync/outgoing");
        let answer = self.http().exchange(request).await;
        self.is_uncertain.fetch_or(answer.is_err(), Ordering::Relaxed);
        let mut answer = answer?;
        if let Some(items) = body.as_ref().and_then(|body| body["items"].as_array()) {
            self.compare_results(items, &answer);
        }
        if let Some((witness, request)) = self.witness.as_ref().zip(seen) {
            witness(&request, &mut answer);
        }
        Ok(answer)
    }

    fn compare_results(&self, items: &[Value], answer: &Answer) {
        let mut violations = self.violations.lock().unwrap();
        let code = answer.body["error"]["code"].as_str().unwrap_or_default();
        if matches!(code, "DEVICE_RESTORED" | "SEQUENCE_GAP") && !self.was_restored.load(Ordering::Relaxed) {
            violations.push(format!("a phone that was never restored got {code}"));
        }
        let mut results = self.results.lock().unwrap();
        for (item, result) in items
            .iter()
            .zip(answer.body["results"].as_array().into_iter().flatten())
        {
            if result["status"] == "retry" {
                continue;
            }
            let mut outline = result.clone();
            // They are about the row as it is now.
            let now = ["server", "overtaken"].map(|name| outline.as_object_mut().unwrap().remove(name));
            if now[1].is_some() && !results.contains_key(&item.to_string()) {
                violations.push(format!("{item} came for the first time, and was answered {result}"));
            }
            let first = results.entry(item.to_string()).or_insert_with(|| outline.clone());
            if *first != outline {
                violations.push(format!("{item} was answered {first}, and then {outline}"));
            }
        }
    }
}

impl Network for Unreliable {
    async fn exchange(&self, request: Request) -> Result<Answer, Lost> {
        let lost = |what: &str| Err(Lost(what.to_owned()));
        if self.has_died.load(Ordering::Relaxed) {
            return lost("the phone is dead");
        }
        let fate = self.fates.lock().unwrap().pop_front().unwrap_or(Fate::Pass);
        match fate {
            Fate::Pass => self.send(request).await,
            Fate::LoseRequest => lost("the story lost the request"),
            Fate::LoseAnswer => {
                let _lost = self.send(request).await;
                lost("the story lost the answer")
            }
            Fate::Twice => {
                let _first = self.send(request.clone()).await;
                self.send(request).await
            }
            Fate::Linger => {
                self.lingering.lock().unwrap().push_back(request.clone());
                self.send(request).await
            }
            Fate::DieBefore => {
                self.has_died.store(true, Ordering::Relaxed);
                lost("the phone died")
            }
            Fate::DieAfter => {
                let _lost = self.send(request).await;
                self.has_died.store(true, Ordering::Relaxed);
                lost("the phone died")
            }
        }
    }
}
