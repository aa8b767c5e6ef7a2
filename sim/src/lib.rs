//! Polo in virtual time: the real coordinator, the real worker session and membership logic, on a simulated network, with
//! arithmetic that costs nothing and faults from a seed.
//!
//! Nothing here decides anything that the product decides. What is replaced is what costs time or touches the machine:
//! libtorch ([`arithmetic`]), TCP ([`net`], [`network`], [`plane`]), the object store ([`store`]) and the clock. While a run goes on,
//! every number that a worker computes with is compared with those of an undisturbed run ([`oracle`]), and every object
//! that is stored is checked ([`store`]). Start reading at [`run::simulate`].

pub mod arithmetic;
pub mod net;
pub mod network;
pub mod oracle;
pub mod plane;
pub mod processes;
pub mod recipe;
pub mod run;
pub mod scenario;
pub mod store;
