//! Keys in memory that isn't swapped out, isn't in core dumps, and is zeroed when they go.

use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::mm::{Advice, madvise, mlock};
use zeroize::Zeroize;

use super::error::{Error, Result};
use super::mem::Region;

/// Bytes of the longest secret: a 256-bit key and a salt fit with room to spare.
pub const MAX_SECRET: usize = 64;
/// Bytes that are mapped and locked at a time: keys of many SAs share a page, since the usual limit
/// of locked memory is 8 MiB.
const CHUNK: usize = 4096;

/// Where secrets are kept. It grows by a page as needed, and gives pages back when it goes.
#[derive(Debug, Default)]
pub struct SecretPool(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    chunks: Vec<Region>,
    free: Vec<Place>,
    unlocked: bool,
}

/// The start of [`MAX_SECRET`] bytes in a chunk.
#[derive(Debug)]
struct Place(NonNull<u8>);

// SAFETY: a Place is the one pointer to its bytes, wherever it is moved to.
unsafe impl Send for Place {}
// SAFETY: through a shared Place bytes are only read; they are written through one that is owned.
unsafe impl Sync for Place {}

impl SecretPool {
    /// Makes an empty pool.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Copies a secret into the pool. Zeroing the original is the caller's.
    ///
    /// # Errors
    /// `Argument` where it is longer than [`MAX_SECRET`]; ENOMEM.
    pub fn store(self: &Arc<Self>, bytes: &[u8]) -> Result<Secret> {
        if bytes.len() > MAX_SECRET {
            return Err(Error::Argument("a secret must have at most 64 bytes"));
        }
        let mut inner = self.lock();
        let place = match inner.free.pop() {
            Some(place) => place,
            None => inner.grow()?,
        };
        drop(inner);
        // SAFETY: `place` was just taken from the free list, so these MAX_SECRET bytes are ours
        // alone; `bytes` can't overlap them and is no longer.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place.0.as_ptr(), bytes.len()) };
        Ok(Secret {
            pool: Arc::clone(self),
            place: Some(place),
            len: bytes.len(),
        })
    }

    /// Whether every page so far could be locked (`RLIMIT_MEMLOCK` allowed it).
    #[must_use]
    pub fn is_locked(&self) -> bool {
        !self.lock().unlocked
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The lists are whole at every point where a panic could come.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Maps a chunk, puts all of its places but one on the free list, and returns that one.
    fn grow(&mut self) -> Result<Place> {
        let mut chunk = Region::new(CHUNK)?;
        let start = chunk.as_mut_ptr();
        // SAFETY: locking changes nothing about this mapping, which is ours, but that it stays.
        self.unlocked |= unsafe { mlock(start.cast(), CHUNK) }.is_err();
        // Best effort, as locking is: a kernel without it dumps no less than before.
        // SAFETY: the advice is about core dumps only.
        let _ = unsafe { madvise(start.cast(), CHUNK, Advice::LinuxDontDump) };
        let first = NonNull::new(start).ok_or(Error::Argument("a region has no address"))?;
        for offset in (MAX_SECRET..CHUNK).step_by(MAX_SECRET) {
            // SAFETY: the offset is within the chunk.
            self.free.push(Place(unsafe { first.add(offset) }));
        }
        self.chunks.push(chunk);
        Ok(Place(first))
    }
}

/// A secret in a [`SecretPool`], zeroed when it is dropped. It is never printed.
pub struct Secret {
    pool: Arc<SecretPool>,
    /// Taken only by drop.
    place: Option<Place>,
    len: usize,
}

impl Secret {
    /// The bytes that were stored.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.place {
            // SAFETY: the place is this secret's until it is dropped, `len` of its bytes were
            // written by `store`, and the pool, which owns the memory, lives as long as self.
            Some(place) => unsafe { std::slice::from_raw_parts(place.0.as_ptr(), self.len) },
            None => &[],
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            // SAFETY: the place is still this secret's alone; MAX_SECRET bytes belong to it.
            let bytes = unsafe { std::slice::from_raw_parts_mut(place.0.as_ptr(), MAX_SECRET) };
            bytes.zeroize();
            self.pool.lock().free.push(place);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_secret_leaves_zeros() {
        let pool = SecretPool::new();
        let secrets: Vec<_> = (1..=64)
            .map(|i| pool.store(&[i; MAX_SECRET]).unwrap())
            .collect();
        let inner = pool.lock();
        assert_eq!((inner.chunks.len(), inner.free.len()), (1, 0));
        assert!(inner.chunks[0].iter().all(|&byte| byte != 0));
        drop(inner);
        drop(secrets);
        let inner = pool.lock();
        assert_eq!(inner.free.len(), 64);
        assert!(inner.chunks[0].iter().all(|&byte| byte == 0));
    }
}
