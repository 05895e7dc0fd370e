//! How many bytes of bodies a process holds at once, of all requests together.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use super::error::{Code, Error};

/// The memory for bodies. Cloning shares it.
#[derive(Debug, Clone)]
pub struct BodyMemory(Arc<Semaphore>);

impl BodyMemory {
    pub fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes_max)))
    }

    /// A share without bytes.
    pub fn share(&self) -> Share {
        Share {
            memory: self.clone(),
            taken: None,
        }
    }
}

/// What one request holds, until it is dropped.
#[derive(Debug)]
pub struct Share {
    memory: BodyMemory,
    taken: Option<OwnedSemaphorePermit>,
}

impl Share {
    /// Takes bytes before they are stored.
    ///
    /// # Errors
    /// 503 `OVERLOADED` while other requests hold them.
    pub fn take(&mut self, bytes: usize) -> Result<(), Error> {
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        match (self.memory.0.clone().try_acquire_many_owned(permits), &mut self.taken) {
            (Ok(permit), Some(taken)) => taken.merge(permit),
            (Ok(permit), taken @ None) => *taken = Some(permit),
            (Err(TryAcquireError::NoPermits | TryAcquireError::Closed), _) => {
                return Err(Error::new(
                    Code::OVERLOADED,
                    "the server holds as many request bodies as it may; try again in a moment",
                ));
            }
        }
        Ok(())
    }

    /// The bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.taken.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    /// Gives bytes back.
    pub fn give_back(&mut self, bytes: usize) {
        drop(self.taken.as_mut().and_then(|taken| taken.split(bytes)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_bounded_together() {
        let memory = BodyMemory::new(10);
        let (mut one, mut two) = (memory.share(), memory.share());
        one.take(4).expect("free");
        one.take(4).expect("free");
        assert_eq!(two.take(3).expect_err("in use").code, Code::OVERLOADED);
        one.give_back(4);
        assert_eq!((one.bytes(), two.bytes()), (4, 0));
        two.take(3).expect("given back");
        drop((one, two));
        memory.share().take(10).expect("all are free");
    }
}
