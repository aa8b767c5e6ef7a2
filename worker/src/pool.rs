//! Vectors that are used again, so that no step asks the system for memory.

use std::sync::mpsc::{Receiver, Sender, channel};

use crate::flat::{Flat, ops::clear};

/// Vectors that nobody uses at the moment.
#[derive(Debug)]
pub struct Pool {
    free: Vec<Flat>,
    returned: Receiver<Flat>,
    returns: Returns,
}

/// Gives vectors back to a pool from another thread.
#[derive(Debug, Clone)]
pub struct Returns(Sender<Flat>);

impl Returns {
    /// Gives one back.
    pub fn give(&self, vector: Flat) {
        let _ = self.0.send(vector); // without its pool it is merely dropped
    }
}

impl Default for Pool {
    fn default() -> Self {
        let (sender, returned) = channel();
        Self { free: Vec::new(), returned, returns: Returns(sender) }
    }
}

impl Pool {
    /// A vector of `len` zeros.
    pub fn zeros(&mut self, len: usize) -> Flat {
        self.free.extend(self.returned.try_iter());
        match self.free.iter().position(|vector| vector.as_slice().len() == len) {
            Some(at) => {
                let mut vector = self.free.swap_remove(at);
                clear(vector.as_mut_slice());
                vector
            }
            None => Flat::zeros(len),
        }
    }

    /// Gives one back.
    pub fn give(&mut self, vector: Flat) {
        self.free.push(vector);
    }

    /// What gives vectors back from another thread.
    pub fn returns(&self) -> Returns {
        self.returns.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_that_was_given_back_comes_again_as_zeros() {
        let mut pool = Pool::default();
        let mut vector = pool.zeros(3);
        vector.as_mut_slice().fill(1.0);
        let place = vector.as_slice().as_ptr();
        pool.returns().give(vector);
        assert_eq!(pool.zeros(2), Flat::zeros(2));
        let again = pool.zeros(3);
        assert_eq!((again.as_slice().as_ptr(), again.as_slice()), (place, &[0.0; 3][..]));
    }
}
