//! Support of the runnable examples.
