//! What stands around a processor: interrupt controllers, timers, loaders, the bare machine.
