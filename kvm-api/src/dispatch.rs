//! Tables of ioctls: one row for each, and the search in them.
//!
//! A table belongs to a kind of descriptor (`system.rs`, `vm.rs`, `vcpu.rs`). The request number
//! holds type, number, size and direction, so that a struct of another size is another request,
//! as in the kernel.

use crate::errno::Result;
use crate::uaccess::{Plain, UserPtr};

/// An ioctl of an object of type `T`.
pub(crate) struct Row<T> {
    pub(crate) request: u32,
    pub(crate) handler: fn(&T, u64) -> Result<i64>,
}

impl<T> Row<T> {
    pub(crate) const fn new(request: u32, handler: fn(&T, u64) -> Result<i64>) -> Self {
        Self { request, handler }
    }
}

/// Returns the handler of a request.
pub(crate) fn find<T>(table: &[Row<T>], request: u32) -> Option<fn(&T, u64) -> Result<i64>> {
    table
        .iter()
        .find(|row| row.request == request)
        .map(|row| row.handler)
}

/// Returns the requests of a table.
pub(crate) fn requests<T>(table: &[Row<T>]) -> Vec<u32> {
    table.iter().map(|row| row.request).collect()
}

/// Copies the argument in.
pub(crate) fn get<T: Plain>(arg: u64) -> Result<T> {
    UserPtr(arg).read()
}

/// Copies a result out.
pub(crate) fn put<T: Plain>(arg: u64, value: &T) -> Result<i64> {
    UserPtr(arg).write(value).map(|()| 0)
}

/// What an ioctl that has nothing to say returns.
pub(crate) fn done(result: Result<()>) -> Result<i64> {
    result.map(|()| 0)
}
