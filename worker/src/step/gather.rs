//! The parameters of a step, block by block: from the worker's own memory, or from the owners of their chunks just before
//! they are needed.
//!
//! Where they are gathered, a rank takes all its micro-batches through a block before it comes to the next. It asks for the
//! blocks from the first to the last, and then for those of the layers from the last to the first. So all ranks gather, and
//! reduce, in one fixed order, as ranks must that exchange with each other.

use std::{mem::take, ops::Deref, ops::Range, time::Duration};

use futures::{
    channel::mpsc::{Receiver, Sender, UnboundedReceiver, UnboundedSender, channel, unbounded},
    sink::SinkExt,
    stream::StreamExt,
};
use polo_recipe::{config::Gather, ids::Rank, layout::Layout};
use tokio::time::Instant;

use crate::{
    flat::{Flat, ops::copy},
    model::views::is_tied,
    params::Params,
    plane::{DataPlane, PlaneError},
    reduce::{Traffic, hand_out},
    step::{Setting, StepError},
    trace::{Trace, Track},
};

/// Gathered blocks that are there at a time: the one that is computed, and the next.
const MOST_GATHERED: usize = 2;

/// The parameters of a step.
pub enum Parameters<'p> {
    /// All are here.
    Whole(&'p [f32], &'p Layout),
    /// They come as they are gathered.
    Gathered(Incoming),
}

/// Blocks that are gathered.
pub struct Incoming {
    blocks: Receiver<Gathered>,
    /// Spent waiting for them.
    waited: Duration,
    trace: Trace,
}

/// The parameters of one block.
pub enum BlockParams<'p> {
    /// A part of all.
    Whole(&'p [f32]),
    /// Gathered, and given back when it is dropped.
    Gathered(Gathered),
}

/// A block that was gathered.
pub struct Gathered {
    block: usize,
    params: Flat,
    back: UnboundedSender<(usize, Flat)>,
}

impl Drop for Gathered {
    fn drop(&mut self) {
        let _ = self.back.unbounded_send((self.block, take(&mut self.params))); // nobody gathers any more: merely dropped
    }
}

impl Deref for BlockParams<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Whole(params) => params,
            Self::Gathered(gathered) => gathered.params.as_slice(),
        }
    }
}

impl<'p> Parameters<'p> {
    /// How they come.
    pub fn gather(&self) -> Gather {
        match self {
            Self::Whole(..) => Gather::Step,
            Self::Gathered(_) => Gather::Block,
        }
    }

    /// Those of a block.
    ///
    /// # Panics
    /// If blocks are gathered and this one is not the next.
    pub async fn block(&mut self, block: usize) -> Result<BlockParams<'p>, StepError> {
        match self {
            Self::Whole(params, layout) => Ok(BlockParams::Whole(&params[layout.blocks[block].range.clone()])),
            Self::Gathered(Incoming { blocks, waited, trace }) => {
                let _waiting = trace.wait("waiting for parameters");
                let started = Instant::now();
                // The other side is gone only with an error of its own, which then goes before this one.
                let gathered = blocks.next().await.ok_or(PlaneError::Aborted)?;
                *waited += started.elapsed();
                assert_eq!(gathered.block, block, "blocks are gathered in one order");
                Ok(BlockParams::Gathered(gathered))
            }
        }
    }

    /// Spent waiting for them.
    pub(super) fn waited(&self) -> Duration {
        match self {
            Self::Whole(..) => Duration::ZERO,
            Self::Gathered(incoming) => incoming.waited,
        }
    }
}

/// Gathers blocks for all ranks that compute.
pub(super) struct Gatherer<'a> {
    layout: &'a Layout,
    owners: &'a [Vec<Rank>],
    receivers: Vec<Rank>,
    /// This rank's own.
    params: &'a Params,
    trace: &'a Trace,
    blocks: Sender<Gathered>,
    back: UnboundedReceiver<(usize, Flat)>,
    to_back: UnboundedSender<(usize, Flat)>,
    /// Blocks that were gathered and are not back yet.
    in_use: Vec<usize>,
    free: Vec<Flat>,
}

impl<'a> Gatherer<'a> {
    /// Both ends, where blocks are gathered.
    pub(super) fn new(
        setting: &'a Setting,
        owners: &'a [Vec<Rank>],
        receivers: Vec<Rank>,
        params: &'a Params,
    ) -> (Self, Parameters<'static>) {
        let layout = &setting.layout;
        let ((blocks, incoming), (to_back, back)) = (channel(MOST_GATHERED), unbounded());
        let incoming = Incoming { blocks: incoming, waited: Duration::ZERO, trace: setting.trace.clone() };
        let gatherer = Self {
            layout,
            owners,
            receivers,
            params,
            trace: &setting.trace,
            blocks,
            back,
            to_back,
            in_use: Vec::new(),
            free: Vec::new(),
        };
        (gatherer, Parameters::Gathered(incoming))
    }

    /// Gathers a block for this rank, and gives others what this one owns of it. False if nobody here computes any more.
    pub(super) async fn gather(
        &mut self,
        plane: &mut dyn DataPlane,
        block: usize,
        traffic: &mut Traffic,
    ) -> Result<bool, PlaneError> {
        let is_wanted = self.receivers.contains(&plane.rank());
        if is_wanted && !self.wait_for_room().await {
            return Ok(false);
        }
        let _gathering = self.trace.block(Track::Exchange, "gather", block);
        let range = self.layout.blocks[block].range.clone();
        let mut params = self.buffer(range.len());
        let (mut chunks, mut owners) = (Vec::new(), Vec::new());
        for (chunk, cut) in self.layout.chunks_in(&range) {
            let place: Range<usize> = cut.start - range.start..cut.end - range.start;
            if let Some(own) = self.params.chunk(chunk) {
                copy(&mut params.as_mut_slice()[place.clone()], own);
            }
            chunks.push(place);
            owners.push(self.owners[chunk.id.0 as usize].clone());
        }
        *traffic += hand_out(plane, &chunks, &owners, &self.receivers, params.as_mut_slice()).await?;
        if !is_wanted {
            self.free.push(params);
            return Ok(true);
        }
        self.in_use.push(block);
        Ok(self.blocks.send(Gathered { block, params, back: self.to_back.clone() }).await.is_ok())
    }

    /// False if nobody here computes any more. An embedding that is the output projection as well stays with the model
    /// until the head is through.
    async fn wait_for_room(&mut self) -> bool {
        let is_extra = |block: &usize| *block == 0 && is_tied(self.layout);
        while self.in_use.iter().filter(|block| !is_extra(block)).count() >= MOST_GATHERED {
            let Some(returned) = self.back.next().await else { return false };
            self.take_back(returned);
        }
        !self.blocks.is_closed()
    }

    /// Only buffers of the wanted length stay: the embedding's is not kept all the while that layers are computed.
    fn buffer(&mut self, len: usize) -> Flat {
        while let Ok(returned) = self.back.try_recv() {
            self.take_back(returned);
        }
        self.free.retain(|free| free.as_slice().len() == len);
        self.free.pop().unwrap_or_else(|| Flat::zeros(len))
    }

    fn take_back(&mut self, (block, params): (usize, Flat)) {
        self.in_use.retain(|in_use| *in_use != block);
        self.free.push(params);
    }
}
