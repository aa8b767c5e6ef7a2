//! Finds stores whose create-only puts do not hold.
//!
//! Two kinds are known: those that ignore the condition, and those that look before they write, so that of several puts
//! at once more than one wins.

use bytes::Bytes;
use futures::future::join_all;

use crate::{Store, StoreError};

/// Fresh keys that are fought for, one after another.
const NUM_ROUNDS: usize = 3;
/// Long enough that a put takes a moment, in which another can slip in after the look that came before it.
const NUM_BYTES: usize = 64 << 10;
/// Puts at once. Some honest stores keep each but one of them waiting for a second.
const NUM_RIVALS: usize = 3;

/// What a store did that it must not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Dishonesty {
    /// A put onto an object that was there.
    #[error("it overwrote an object that was to be created only if there was none")]
    Overwrote,
    /// Puts at once that were all told they had made the object.
    #[error("of {NUM_RIVALS} create-only puts at once, {0} were told that they had made the object")]
    ManyWinners(usize),
    /// The object is not the winner's.
    #[error("a create-only put was told that it had made an object, but another one's bytes are there")]
    WrongBytes,
}

impl Store {
    /// Tries whether a create-only put holds; what was seen if it does not. Leaves nothing behind.
    pub async fn find_dishonesty(&self) -> Result<Option<Dishonesty>, StoreError> {
        let name: u64 = rand::random();
        for round in 0..NUM_ROUNDS {
            let key = format!("probe/{name:016x}-{round}");
            let found = self.fight_for(&key).await;
            self.delete(&key).await?;
            if let Some(dishonesty) = found? {
                return Ok(Some(dishonesty));
            }
        }
        Ok(None)
    }

    async fn fight_for(&self, key: &str) -> Result<Option<Dishonesty>, StoreError> {
        let bytes = |rival: usize| Bytes::from(vec![rival as u8; NUM_BYTES]);
        let tries = join_all((0..NUM_RIVALS).map(|rival| self.put_if_absent(key, bytes(rival)))).await;
        let tries = tries.into_iter().collect::<Result<Vec<_>, _>>()?;
        let winners: Vec<_> = (0..NUM_RIVALS).filter(|rival| tries[*rival]).collect();
        let [winner] = winners[..] else { return Ok(Some(Dishonesty::ManyWinners(winners.len()))) };
        if self.put_if_absent(key, bytes(NUM_RIVALS)).await? {
            return Ok(Some(Dishonesty::Overwrote));
        }
        Ok((self.get(key).await? != bytes(winner)).then_some(Dishonesty::WrongBytes))
    }
}
