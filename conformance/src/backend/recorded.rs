//! Recordings: every call of every case with its reply, as JSON, and the backend that replays them.
//!
//! A recording holds the inputs too: a case that asks something else than what was recorded is
//! told so ([`RecordedBackend::departed`]) and is then skipped as not recorded, never guessed.

use super::{Backend, Call, Errno, Reply};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// The version of the format of a recording.
pub const FORMAT: u32 = 1;

/// What one backend answered to the cases.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Recording {
    /// [`FORMAT`] of the writer.
    pub format: u32,
    /// The backend that was recorded.
    pub backend: String,
    /// The kernel it ran on, for the reader.
    pub kernel: String,
    /// Every exchange that occurs, once.
    pub exchanges: Vec<Exchange>,
    /// By the name of the unit: its exchanges in order, as indices.
    pub units: BTreeMap<String, Vec<usize>>,
}

/// A call and its reply.
pub type Exchange = (Call, Reply);

impl Recording {
    /// Adds a unit.
    pub fn add(&mut self, unit: &str, calls: Vec<Exchange>, seen: &mut HashMap<String, usize>) {
        let indices = calls.into_iter().map(|exchange| {
            // Keyed by its text: equal exchanges have equal texts.
            let text = serde_json::to_string(&exchange).expect("an exchange is plain data");
            *seen.entry(text).or_insert_with(|| {
                self.exchanges.push(exchange);
                self.exchanges.len() - 1
            })
        });
        let indices = indices.collect();
        self.units.insert(unit.to_owned(), indices);
    }

    /// The exchanges of a unit, if it was recorded.
    #[must_use]
    pub fn unit(&self, name: &str) -> Option<Vec<Exchange>> {
        let indices = self.units.get(name)?;
        indices
            .iter()
            .map(|index| self.exchanges.get(*index).cloned())
            .collect()
    }
}

/// Passes calls on to a backend and keeps them with their replies.
pub struct Recorder<'a> {
    inner: &'a mut dyn Backend,
    calls: Vec<(Call, Reply)>,
}

impl<'a> Recorder<'a> {
    /// Records what `inner` answers.
    pub fn new(inner: &'a mut dyn Backend) -> Recorder<'a> {
        Recorder {
            inner,
            calls: Vec::new(),
        }
    }

    /// What was recorded.
    #[must_use]
    pub fn into_calls(self) -> Vec<(Call, Reply)> {
        self.calls
    }
}

impl Backend for Recorder<'_> {
    fn perform(&mut self, call: &Call) -> Reply {
        let reply = self.inner.perform(call);
        self.calls.push((call.clone(), reply.clone()));
        reply
    }

    fn reset(&mut self) {
        self.inner.reset();
    }
}

/// Replays one unit of a recording.
#[derive(Debug)]
pub struct RecordedBackend {
    calls: std::vec::IntoIter<(Call, Reply)>,
    departed: bool,
}

impl RecordedBackend {
    /// Replays these calls.
    #[must_use]
    pub fn new(calls: Vec<(Call, Reply)>) -> RecordedBackend {
        RecordedBackend {
            calls: calls.into_iter(),
            departed: false,
        }
    }

    /// Whether the case asked something that the recording does not hold.
    #[must_use]
    pub fn departed(&self) -> bool {
        self.departed
    }
}

impl Backend for RecordedBackend {
    fn perform(&mut self, call: &Call) -> Reply {
        match self.calls.next() {
            Some((recorded, reply)) if recorded == *call && !self.departed => reply,
            _ => {
                self.departed = true;
                Reply::bare(Err(Errno(libc::ENODATA)))
            }
        }
    }

    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Argument, Handle};

    #[test]
    fn a_recording_answers_what_was_asked_and_nothing_else() {
        let call = Call::Ioctl(Handle(0), 0xae00, Argument::Value(0));
        let reply = Reply::bare(Ok(12));
        let mut backend = RecordedBackend::new(vec![(call.clone(), reply.clone())]);
        assert_eq!(backend.perform(&call), reply);
        assert!(!backend.departed());
        let _ = backend.perform(&call);
        assert!(backend.departed());
    }

    #[test]
    fn a_recording_survives_json() {
        let call = Call::Ioctl(
            Handle(0),
            0xae00,
            Argument::Bytes(super::super::Bytes(vec![0; 40])),
        );
        let exchange = (call, Reply::bare(Err(Errno(22))));
        let mut recording = Recording {
            format: FORMAT,
            ..Recording::default()
        };
        let mut seen = HashMap::new();
        recording.add("u", vec![exchange.clone(), exchange.clone()], &mut seen);
        assert_eq!(recording.exchanges.len(), 1);
        assert_eq!(recording.unit("u"), Some(vec![exchange.clone(), exchange]));
        let text = serde_json::to_string(&recording).expect("a recording is plain data");
        assert_eq!(
            serde_json::from_str::<Recording>(&text).expect("just written"),
            recording
        );
    }
}
