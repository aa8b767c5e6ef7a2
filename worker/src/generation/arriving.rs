//! How a rank gets to where its generation begins: makes, loads, rolls forward or is given what it lacks.

use polo_proto::v1::{self, session_request::Message};
use polo_recipe::{
    config::Gather,
    ids::{Rank, Step},
    layout::ChunkId,
};
use tokio::time::Instant;

use super::{GenerationError, Membering, bench};
use crate::{
    arrival::Origin,
    decision::Decision,
    moves::{Givable, batches, carry},
    plane::{PlaneError, Transfer},
    session::Role,
    step::{Moved, apply, owned_by},
    trainer::Trainer,
};

impl Membering<'_> {
    /// Brings this rank to where the generation begins. None if the checkpoint is damaged, which the coordinator is
    /// told.
    pub(super) async fn arrive(&mut self) -> Result<Option<Moved>, GenerationError> {
        let started = Instant::now();
        match self.arrival.origin {
            Origin::Fresh => self.initialize().await?,
            Origin::Checkpoint => {
                if !self.load().await? {
                    return Ok(None);
                }
            }
            Origin::Survivors => self.join_survivors().await?,
        }
        let num_bytes = self.mend().await?;
        Ok(Some(Moved { time: started.elapsed(), num_bytes }))
    }

    fn owned(&self) -> Vec<ChunkId> {
        owned_by(&self.arrival.owners, self.rank())
    }

    /// Makes the state of step 0.
    async fn initialize(&mut self) -> Result<(), GenerationError> {
        self.trainer.state.clear();
        if self.order.role() != Role::Member {
            return Ok(());
        }
        let owned = self.owned();
        let Trainer { state, setting, arithmetic, .. } = &mut *self.trainer;
        state
            .make_first(&owned, &setting.layout, &setting.plan, &mut **arithmetic)
            .await
            .map_err(GenerationError::InitialWeights)
    }

    /// Loads this rank's chunks of a checkpoint; false if it is damaged.
    async fn load(&mut self) -> Result<bool, GenerationError> {
        self.trainer.state.clear();
        if self.order.role() != Role::Member {
            return Ok(true);
        }
        self.show("loading a checkpoint");
        let (step, owned) = (self.arrival.step, self.owned());
        let Trainer { state, setting, checkpointer, .. } = &mut *self.trainer;
        match checkpointer.load(state, step, &owned, &setting.layout, &setting.plan).await {
            Ok(()) => Ok(true),
            Err(error) if error.is_damage() => {
                let (generation, problem) = (self.generation().0, error.to_string());
                let damaged = v1::CheckpointDamaged { generation, step: step.0, problem };
                self.trainer.desk().send(Message::CheckpointDamaged(damaged));
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Learns how the last step was decided, and applies it where that was not done yet.
    async fn join_survivors(&mut self) -> Result<(), GenerationError> {
        let news = self.hear_news().await?;
        let (step, own) = (self.arrival.step, self.rank());
        if self.arrival.rolling.contains(&own) {
            let (_, decision) = news.as_ref().ok_or_else(|| self.no_teller())?;
            let (setting, decision) = (self.trainer.setting.clone(), decision.clone());
            let summed: Vec<_> = self.trainer.state.summed.iter().copied().collect();
            tracing::info!(generation = self.generation().0, step = step.0, "rolling a decided step forward");
            apply(&setting, &mut bench(self.trainer, &mut self.plane), &summed, Step(step.0 - 1), decision)?;
        }
        let state = &mut self.trainer.state;
        if state.step != Some(step) {
            state.clear();
        }
        if let Some((ledger, _)) = news {
            state.ledger.decode(&ledger);
        }
        Ok(())
    }

    fn no_teller(&self) -> PlaneError {
        let (expected, got) = ("a rank that knows the last decision".into(), "none".into());
        PlaneError::Desynchronised { rank: self.rank(), expected, got }
    }

    /// The ledger and the last decision, from the rank that tells them; none on that rank.
    async fn hear_news(&mut self) -> Result<Option<(Vec<u8>, Decision)>, PlaneError> {
        let Some(teller) = self.arrival.teller else { return Ok(None) };
        let own = self.rank();
        let state = &self.trainer.state;
        let num_sources = self.trainer.setting.plan.sources().len();
        let nothing = || Decision { tallies: vec![Default::default(); num_sources], grad_norm: 0.0, skip: true };
        let ledger_bytes = state.ledger.num_bytes();
        let mut news = vec![0; ledger_bytes + Decision::num_bytes(num_sources)];
        if own != teller {
            self.plane.exchange(&mut [Transfer::Recv { from: teller, bytes: &mut news }]).await?;
            let (ledger, decision) = news.split_at(ledger_bytes);
            return Ok(Some((ledger.to_vec(), Decision::decode(decision))));
        }
        let decision = state.last_decision.clone().unwrap_or_else(nothing);
        news = [state.ledger.encode(), decision.encode()].concat();
        let others = (0..self.plane.world() as u32).map(Rank).filter(|rank| *rank != own);
        let mut group: Vec<_> = others.map(|to| Transfer::Send { to, bytes: &news }).collect();
        self.plane.exchange(&mut group).await?;
        Ok(None)
    }

    /// Completes the parameters of those who are to compute; returns the bytes that came.
    async fn mend(&mut self) -> Result<u64, GenerationError> {
        let mut num_bytes = 0;
        if !self.arrival.mends.is_empty() {
            self.show("moving state");
            let layout = self.trainer.setting.layout.clone();
            for batch in batches(&self.arrival.mends) {
                let state = &mut self.trainer.state;
                let arrived = carry(&mut *self.plane, batch, &layout, &Givable::of(state)).await?;
                num_bytes += arrived.iter().map(|chunk| chunk.num_bytes()).sum::<u64>();
                arrived.into_iter().for_each(|chunk| state.install(chunk, &layout));
            }
        }
        let (is_computing, state) = (self.arrival.computing.contains(&self.rank()), &mut self.trainer.state);
        if is_computing && state.params.gather() == Gather::Step {
            (state.step, state.params_complete) = (Some(self.arrival.step), true);
        }
        Ok(num_bytes)
    }
}
