//! Workers on a device whose logits are a hash of the log, so that one wrong token or state shows in all that follow.

mod acts;
mod dying;
mod isolation;
mod losses;
mod moves;
mod peers;
mod simulation;
mod solo;
mod world;
