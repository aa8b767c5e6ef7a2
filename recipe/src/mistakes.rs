//! Mistakes that such software has been known to make. The simulation puts each of them back, and must find it.
//!
//! Without the feature `mistakes`, which only tests switch on, [`is_back`] is always false and costs nothing.

/// A mistake that can be put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// A worker takes up a generation that is not newer than one it has taken part in.
    OldGenerationAccepted,
    /// A worker that has applied a step forgets so when the others are lost before they have.
    DecidedStepDropped,
    /// A checkpoint's manifest is written while its chunks are still on their way.
    ManifestBeforeChunks,
    /// A coordinator that comes back counts on from an older generation than the last.
    GenerationReused,
    /// A joiner computes before it has the parameters of the step.
    JoinerInMidStep,
}

#[cfg(feature = "mistakes")]
thread_local! {
    static BACK: std::cell::Cell<Option<Mistake>> = const { std::cell::Cell::new(None) };
}

/// Puts a mistake back on this thread, or takes the last one away.
#[cfg(feature = "mistakes")]
pub fn put_back(mistake: Option<Mistake>) {
    BACK.set(mistake);
}

/// Whether the mistake was put back.
#[cfg(feature = "mistakes")]
pub fn is_back(mistake: Mistake) -> bool {
    BACK.get() == Some(mistake)
}

/// Whether the mistake was put back: never.
#[cfg(not(feature = "mistakes"))]
pub const fn is_back(_: Mistake) -> bool {
    false
}
