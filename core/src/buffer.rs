//! Buffers of what may be secret.

use alloc::rc::Rc;
use alloc::vec::Vec;

use zeroize::{Zeroizing, optimization_barrier};

use crate::codec::OutOfMemory;

/// A buffer that has grown beyond this is freed when it is empty, in bytes.
pub const KEPT: usize = 64 * 1024;

/// A secret that several use. It is wiped when nobody does any more.
pub type Secret = Rc<Zeroizing<Vec<u8>>>;

/// Overwrites bytes with zeros, which the compiler does not leave out. As fast as the processor can,
/// where `Zeroize` of a slice writes byte by byte.
pub fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    optimization_barrier(bytes);
}

/// A copy that is wiped when it is dropped.
pub fn copy(bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>, OutOfMemory> {
    let mut copy = Zeroizing::new(Vec::new());
    copy.try_reserve_exact(bytes.len()).map_err(|_| OutOfMemory)?;
    copy.extend_from_slice(bytes);
    Ok(copy)
}

/// Makes room for so many bytes more. Where the buffer has to move, what it leaves behind is wiped.
pub fn reserve(buf: &mut Vec<u8>, more: usize) -> Result<(), OutOfMemory> {
    if buf.capacity().saturating_sub(buf.len()) >= more {
        return Ok(());
    }
    let need = buf.len().checked_add(more).ok_or(OutOfMemory)?;
    let mut moved = Vec::new();
    moved.try_reserve(need.max(buf.capacity().saturating_mul(2))).map_err(|_| OutOfMemory)?;
    moved.extend_from_slice(buf);
    wipe(buf);
    *buf = moved;
    Ok(())
}

/// Removes the first `n` bytes.
pub fn shift(buf: &mut Vec<u8>, n: usize) {
    let n = n.min(buf.len());
    let rest = buf.len().saturating_sub(n);
    buf.copy_within(n.., 0);
    if let Some(end) = buf.get_mut(rest..) {
        wipe(end);
    }
    buf.truncate(rest);
}

/// Empties a buffer; one that had to grow is freed.
pub fn empty(buf: &mut Vec<u8>) {
    wipe(buf);
    buf.clear();
    if buf.capacity() > KEPT {
        *buf = Vec::new();
    }
}
