//! What spares are told and handed in a step.

use polo_recipe::ids::{Rank, Step};

use super::Setting;
use crate::{
    boundary,
    params::Params,
    plane::{DataPlane, PlaneError, Transfer},
    reduce::hand_out,
    session::Order,
    state::TrainState,
};

/// A spare's part in one step: is told what comes next and, unless they are gathered, handed the parameters.
pub async fn follow(
    setting: &Setting,
    order: &Order,
    owners: &[Vec<Rank>],
    plane: &mut dyn DataPlane,
    state: &mut TrainState,
) -> Result<boundary::Verdict, PlaneError> {
    let mut note = vec![0; SpareNote::NUM_BYTES + state.ledger.num_bytes()];
    plane.exchange(&mut [Transfer::Recv { from: Rank(0), bytes: &mut note }]).await?;
    let SpareNote { step, verdict } = SpareNote::decode(&note);
    state.clear();
    if let Params::Whole(params) = &mut state.params {
        let chunks: Vec<_> = setting.layout.chunks.iter().map(|c| c.range.clone()).collect();
        let receivers: Vec<_> = (0..(order.num_members() + order.num_spares()) as u32).map(Rank).collect();
        hand_out(plane, &chunks, owners, &receivers, params.as_mut_slice()).await?;
        state.params_complete = true;
    }
    state.ledger.decode(&note[SpareNote::NUM_BYTES..]);
    state.step = Some(step);
    Ok(verdict)
}

/// What a spare is told after each step, before the parameters; the ledger follows.
pub(super) struct SpareNote {
    pub(super) step: Step,
    pub(super) verdict: boundary::Verdict,
}

impl SpareNote {
    pub(super) const NUM_BYTES: usize = 9;

    pub(super) fn encode(&self, ledger: &[u8]) -> Vec<u8> {
        [&self.step.0.to_le_bytes()[..], &[self.verdict as u8], ledger].concat()
    }

    pub(super) fn decode(bytes: &[u8]) -> Self {
        let step = Step(u64::from_le_bytes(std::array::from_fn(|i| bytes[i])));
        let all = [boundary::Verdict::GoOn, boundary::Verdict::ChangeOver, boundary::Verdict::Stop];
        let verdict = all.into_iter().find(|v| *v as u8 == bytes[8]).unwrap_or(boundary::Verdict::ChangeOver);
        Self { step, verdict }
    }
}
