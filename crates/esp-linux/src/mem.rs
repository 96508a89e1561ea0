//! Buffers allocated once: on huge pages if there are any, cut into slots on cache lines.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::error::{Error, Result, Step};

/// Bytes of a cache line, on all processors that matter here.
pub const CACHE_LINE: usize = 64;

/// Bytes of a huge page on `x86_64` and on arm64 with 4 KiB pages.
const HUGE_PAGE: usize = 2 << 20;

/// The pages that a [`Region`] is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// Reserved huge pages (`MAP_HUGETLB`).
    Huge,
    /// The kernel was asked to use huge pages where it can (`MADV_HUGEPAGE`).
    Transparent,
    /// Plain pages.
    Plain,
}

/// Zeroed memory of its own, aligned to pages.
#[derive(Debug)]
pub struct Region {
    start: NonNull<u8>,
    len: usize,
    pages: Pages,
}

impl Region {
    /// Maps at least `len` bytes. Memory becomes resident only as it is used, except on reserved
    /// huge pages.
    ///
    /// # Errors
    /// ENOMEM; `Argument` if `len` is 0.
    pub fn new(len: usize) -> Result<Self> {
        if len == 0 {
            return Err(Error::Argument("a memory region must have a byte"));
        }
        // A smaller region would waste most of a huge page, and each worker has several.
        if len < HUGE_PAGE {
            return Self::map(len, MapFlags::PRIVATE, Pages::Plain);
        }
        let len = len.checked_next_multiple_of(HUGE_PAGE);
        let len = len.ok_or(Error::Argument("a memory region can't be that large"))?;
        let huge = MapFlags::PRIVATE | MapFlags::HUGETLB | MapFlags::HUGE_2MB;
        if let Ok(region) = Self::map(len, huge, Pages::Huge) {
            return Ok(region);
        }
        let mut region = Self::map(len, MapFlags::PRIVATE, Pages::Transparent)?;
        let start = region.start.as_ptr().cast();
        // SAFETY: the advice changes how this mapping, which is ours, is backed, not what is in it.
        if unsafe { madvise(start, len, Advice::LinuxHugepage) }.is_err() {
            region.pages = Pages::Plain;
        }
        Ok(region)
    }

    fn map(len: usize, flags: MapFlags, pages: Pages) -> Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a private anonymous mapping at an address of the kernel's choice touches no other.
        let start =
            unsafe { mmap_anonymous(std::ptr::null_mut(), len, access, flags) }.step("mmap")?;
        let start = NonNull::new(start.cast()).ok_or(Error::Argument("mmap gave no memory"))?;
        Ok(Self { start, len, pages })
    }

    /// The kind of pages in use.
    #[must_use]
    pub fn pages(&self) -> Pages {
        self.pages
    }
}

impl Deref for Region {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping has `len` bytes, zeroed by the kernel, and lives as long as self.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Region {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and self is borrowed mutably, so that nothing else looks at it.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length, and nothing borrows from self any more.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

// SAFETY: a Region owns its mapping alone, as a Box<[u8]> does; mappings belong to the process.
unsafe impl Send for Region {}
// SAFETY: as for Send: shared references only read.
unsafe impl Sync for Region {}

/// Buffers of one size, each beginning on a cache line of its own.
#[derive(Debug)]
pub struct Slots {
    region: Region,
    stride: usize,
    slot_len: usize,
    count: usize,
}

impl Slots {
    /// Makes `count` buffers of `slot_len` bytes.
    ///
    /// # Errors
    /// ENOMEM; `Argument` if there would be no bytes, or more than can be counted.
    pub fn new(count: usize, slot_len: usize) -> Result<Self> {
        // An odd number of lines: with a power of two all headers would fall into one cache set.
        let lines = slot_len.div_ceil(CACHE_LINE) | 1;
        let too_many = Error::Argument("that many buffers can't be counted");
        let stride = lines.checked_mul(CACHE_LINE).ok_or(too_many)?;
        Ok(Self {
            region: Region::new(stride.checked_mul(count).ok_or(too_many)?)?,
            stride,
            slot_len,
            count,
        })
    }

    /// Number of buffers.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// The pages of the region that they lie in.
    #[must_use]
    pub fn pages(&self) -> Pages {
        self.region.pages()
    }

    /// The buffer of an index less than [`Self::count`].
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let start = self.start_of(index)?;
        self.region.get(start..start + self.slot_len)
    }

    /// Mutable access to the buffer of an index.
    #[must_use]
    pub fn get_mut(&mut self, index: usize) -> Option<&mut [u8]> {
        let start = self.start_of(index)?;
        self.region.get_mut(start..start + self.slot_len)
    }

    /// All buffers, in order, mutably.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let (len, count) = (self.slot_len, self.count);
        let strides = self.region.chunks_exact_mut(self.stride);
        strides.take(count).map(move |stride| &mut stride[..len])
    }

    fn start_of(&self, index: usize) -> Option<usize> {
        (index < self.count).then(|| index * self.stride)
    }
}
