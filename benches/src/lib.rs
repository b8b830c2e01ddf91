//! Benchmarks of every layer, through public API.
