//! A plane whose receiver has bad memory.

use futures::future::{BoxFuture, FutureExt};
use polo_recipe::ids::{Generation, Rank, Step};
use polo_worker::plane::{AbortHandle, DataPlane, PlaneError, Transfer};

/// A bit that flips in the gradient pieces that a rank receives.
#[derive(Debug, Clone, Copy)]
pub struct Flip {
    /// On which rank.
    pub on: Rank,
    /// In which step.
    pub step: Step,
    /// In so many tries of it.
    pub num_tries: usize,
    /// Whether it is in another block in every other try.
    pub wanders: bool,
}

/// Of a try's exchanges that bring something, a later one that still brings gradient pieces: blocks come first.
const ANOTHER: usize = 2;

/// A plane in which bits flip.
pub struct Flipping {
    pub inner: Box<dyn DataPlane>,
    flip: Option<Flip>,
    step: Step,
    num_tries_left: usize,
    num_exchanges: usize,
}

impl Flipping {
    pub fn new(inner: Box<dyn DataPlane>, flip: Option<Flip>) -> Self {
        let flip = flip.filter(|flip| flip.on == inner.rank());
        let num_tries_left = flip.map_or(0, |flip| flip.num_tries);
        Self { inner, flip, step: Step(0), num_tries_left, num_exchanges: 0 }
    }

    /// A try of that step begins.
    pub fn begin_try(&mut self, step: Step) {
        (self.step, self.num_exchanges) = (step, 0);
    }

    fn flip_if_due(&mut self, group: &mut [Transfer<'_>]) {
        let received = group.iter_mut().find_map(|transfer| match transfer {
            Transfer::Recv { bytes, .. } if !bytes.is_empty() => Some(bytes),
            _ => None,
        });
        let Some(piece) = received else { return };
        let is_another = self.flip.is_some_and(|flip| flip.wanders) && self.num_tries_left.is_multiple_of(2);
        let wanted = if is_another { ANOTHER } else { 0 };
        let is_due = self.flip.is_some_and(|flip| flip.step == self.step) && self.num_exchanges == wanted;
        self.num_exchanges += 1;
        if is_due && self.num_tries_left > 0 {
            // The third byte of a little-endian fp32 is of the mantissa, but for its highest bit.
            piece[2] ^= 0x10;
            self.num_tries_left -= 1;
        }
    }
}

impl DataPlane for Flipping {
    fn rank(&self) -> Rank {
        self.inner.rank()
    }

    fn world(&self) -> usize {
        self.inner.world()
    }

    fn generation(&self) -> Generation {
        self.inner.generation()
    }

    fn exchange<'a>(&'a mut self, group: &'a mut [Transfer<'_>]) -> BoxFuture<'a, Result<(), PlaneError>> {
        async move {
            self.inner.exchange(group).await?;
            self.flip_if_due(group);
            Ok(())
        }
        .boxed()
    }

    fn abort_handle(&self) -> AbortHandle {
        self.inner.abort_handle()
    }
}
