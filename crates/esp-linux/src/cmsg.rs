//! Control messages (cmsg(3)) as bytes: the kernel's layout, written and read without pointers.

/// The kernel aligns headers and data to its `size_t`.
const ALIGN: usize = size_of::<usize>();
/// `struct cmsghdr`: a `size_t` length that counts this header, an int level, an int type.
const HEADER_LEN: usize = size_of::<usize>() + 2 * size_of::<i32>();

/// Bytes that a message of `len` data bytes takes, padding included.
pub(crate) const fn space(len: usize) -> usize {
    HEADER_LEN + len.next_multiple_of(ALIGN)
}

/// Writes one message at `at` and returns where the next begins; `None` if it doesn't fit.
pub(crate) fn push(buf: &mut [u8], at: usize, level: i32, kind: i32, data: &[u8]) -> Option<usize> {
    let message = buf.get_mut(at..at + space(data.len()))?;
    let (header, body) = message.split_at_mut(HEADER_LEN);
    let (len, rest) = header.split_at_mut(ALIGN);
    len.copy_from_slice(&(HEADER_LEN + data.len()).to_ne_bytes());
    rest[..4].copy_from_slice(&level.to_ne_bytes());
    rest[4..].copy_from_slice(&kind.to_ne_bytes());
    body[..data.len()].copy_from_slice(data);
    Some(at + space(data.len()))
}

/// The messages of a control buffer as `(level, type, data)`; ends at the first that isn't whole.
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (i32, i32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (len, rest) = self.0.split_first_chunk::<ALIGN>()?;
        let (level, rest) = rest.split_first_chunk::<4>()?;
        let (kind, _) = rest.split_first_chunk::<4>()?;
        let data_len = usize::from_ne_bytes(*len).checked_sub(HEADER_LEN)?;
        let data = self.0[HEADER_LEN..].get(..data_len)?;
        // The last message may come without its padding.
        self.0 = self.0.get(space(data_len)..).unwrap_or(&[]);
        Some((i32::from_ne_bytes(*level), i32::from_ne_bytes(*kind), data))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_as_they_were_pushed() {
        let mut buf = [0; 64];
        let at = push(&mut buf, 0, 17, 103, &1400u16.to_ne_bytes()).unwrap();
        let end = push(&mut buf, at, 0, 1, &2i32.to_ne_bytes()).unwrap();
        let read: Vec<_> = Messages(&buf[..end]).collect();
        assert_eq!(
            read,
            [
                (17, 103, &1400u16.to_ne_bytes()[..]),
                (0, 1, &2i32.to_ne_bytes()[..])
            ]
        );
    }

    #[test]
    fn a_message_that_does_not_fit_is_refused() {
        let mut buf = [0; 40];
        let at = push(&mut buf, 0, 1, 1, &[0; 4]).unwrap();
        assert_eq!(push(&mut buf, at, 1, 1, &[0; 4]), None);
    }

    #[test]
    fn reading_ends_at_a_message_that_is_cut_or_says_nonsense() {
        let mut buf = [0; 48];
        let end = push(&mut buf, 0, 1, 1, &[0; 4]).unwrap();
        for cut in 0..HEADER_LEN + 4 {
            assert_eq!(Messages(&buf[..cut]).count(), 0, "cut at {cut}");
        }
        for len in [0, 1, HEADER_LEN - 1, 49, usize::MAX] {
            buf[..ALIGN].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(Messages(&buf[..end]).count(), 0, "length {len}");
        }
    }

    #[test]
    fn the_layout_is_the_kernels() {
        assert_eq!(HEADER_LEN, size_of::<libc::cmsghdr>());
    }
}
