//! Streams and graphs.
//!
//! Work runs at once, in the thread that asks for it: a stream has no state but whether it is being captured, in which
//! case its work is kept for a graph instead.

use crate::status::{Failure, Outcome, code, failure};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One piece of work: a launch, a copy, a product. It may run many times, as part of a graph.
pub type Work = Box<dyn Fn() -> Outcome + Send + Sync>;

/// A stream.
#[derive(Default)]
pub struct Stream {
    captured: Mutex<Option<Vec<Work>>>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stream")
    }
}

impl Stream {
    /// One that is not captured.
    pub const fn new() -> Stream {
        Stream { captured: Mutex::new(None) }
    }

    fn captured(&self) -> MutexGuard<'_, Option<Vec<Work>>> {
        self.captured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs, or keeps for the graph.
    ///
    /// # Errors
    /// Of the work.
    pub fn submit(&self, work: Work) -> Outcome {
        if let Some(list) = self.captured().as_mut() {
            list.push(work);
            return Ok(());
        }
        work()
    }

    /// From here on work is kept.
    ///
    /// # Errors
    /// It is already.
    pub fn begin(&self) -> Outcome {
        let mut captured = self.captured();
        if captured.is_some() {
            return Err(failure(code::CAPTURE_UNSUPPORTED, "the stream is being captured already"));
        }
        *captured = Some(Vec::new());
        Ok(())
    }

    /// What was kept.
    ///
    /// # Errors
    /// Nothing was being kept.
    pub fn end(&self) -> Result<Vec<Work>, Failure> {
        let none = || failure(code::CAPTURE_UNMATCHED, "the stream is not being captured");
        self.captured().take().ok_or_else(none)
    }

    /// Waits, which needs no time; but a stream that is being captured cannot be waited for.
    ///
    /// # Errors
    /// It is being captured.
    pub fn wait(&self) -> Outcome {
        match *self.captured() {
            None => Ok(()),
            Some(_) => Err(failure(code::CAPTURE_UNSUPPORTED, "waiting for a stream that is being captured")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn what_is_captured_runs_when_it_is_replayed() {
        let (stream, count) = (Stream::default(), Arc::new(AtomicU32::new(0)));
        let work = || {
            let count = count.clone();
            Box::new(move || {
                count.fetch_add(1, Ordering::Relaxed);
                Ok(())
            })
        };
        assert!(stream.submit(work()).is_ok() && count.load(Ordering::Relaxed) == 1);
        assert!(stream.end().is_err());
        assert!(stream.begin().is_ok() && stream.begin().is_err() && stream.wait().is_err());
        assert!(stream.submit(work()).is_ok() && count.load(Ordering::Relaxed) == 1);
        let kept = stream.end().expect("a graph");
        assert!(stream.wait().is_ok() && kept.len() == 1);
        assert!(
            kept.iter().all(|work| work().is_ok() && work().is_ok()) && count.load(Ordering::Relaxed) == 3
        );
    }
}
