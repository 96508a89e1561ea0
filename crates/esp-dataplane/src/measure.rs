//! Benchmark of a provider: nanoseconds to seal a packet on this machine.

use std::sync::Arc;
use std::time::Instant;

use esp_core::esp::aead::{MakeAead, NONCE_LEN, SaAead, SealError};
use esp_core::esp::suite::Suite;
use esp_core::provider::{Choice, Provider};
use esp_linux::poll::Waker;
use esp_linux::{Error, Result, random};

use crate::aead_factory::AeadFactory;
use crate::af_alg::{AfAlgKeys, MAX_SIZE as MAX_KERNEL_SIZE};
use crate::events::Events;

/// Bytes of the largest packet.
pub const MAX_SIZE: usize = 65535;
/// Most packets of a measurement.
pub const MAX_PACKETS: u32 = 1_000_000;
/// Most bytes of all packets together: some seconds of work.
const MAX_BYTES: u64 = 1 << 32;
/// Packets of a batch, about the segments of a super-packet.
const BATCH: usize = 32;
/// `AF_ALG` as a provider's name.
const AF_ALG: &str = "af-alg";
const NO_SUITE: Error = Error::Argument("the provider does not have this suite");
const NOT_SEALED: Error = Error::Argument("the provider could not seal");
/// SPI and `seq_lo`.
const AAD: [u8; 8] = [0, 0, 1, 0, 0, 0, 0, 1];

/// Seals `packets` packets of `size` bytes with a random key, in batches; nanoseconds a packet.
///
/// # Errors
/// `Argument` for a provider that this build or suite lacks, and for a number out of its bounds;
/// the error of the system call.
pub fn seal_time(provider: &str, suite: &'static Suite, size: usize, packets: u32) -> Result<f64> {
    if !(1..=MAX_SIZE).contains(&size) {
        return Err(Error::Argument("a packet has 1 to 65535 bytes"));
    }
    if !(1..=MAX_PACKETS).contains(&packets) {
        return Err(Error::Argument("1 to 1000000 packets are measured"));
    }
    if size as u64 * u64::from(packets) > MAX_BYTES {
        return Err(Error::Argument("at most 4 GiB are measured"));
    }
    let mut key = [0; 32];
    random::fill(&mut key)?;
    let key = &key[..suite.key_len];
    if provider == AF_ALG {
        return by_kernel(suite, key, size, packets);
    }
    let aead = Provider::by_name(provider)
        .ok_or(Error::Argument("there is no such provider"))?
        .aead(suite, key)
        .map_err(|_| NO_SUITE)?;
    let mut aead = SaAead::Plain(aead);
    time(&mut aead, suite.icv_len, size, packets).map_err(|_| NOT_SEALED)
}

fn by_kernel(suite: &'static Suite, key: &[u8], size: usize, packets: u32) -> Result<f64> {
    if size > MAX_KERNEL_SIZE {
        return Err(Error::Argument("AF_ALG is given at most 61440 bytes"));
    }
    let events = Arc::new(Events::new(Waker::new()?));
    let kernel = AfAlgKeys::new(vec![suite], events);
    let maker = AeadFactory::new(Choice::Only(Provider::OpenSsl), kernel);
    let mut aead = maker.make(suite, key).map_err(|_| NO_SUITE)?;
    let found = time(&mut aead, suite.icv_len, size, packets).map_err(|_| NOT_SEALED);
    // A result of the fallback library is not a measurement of the kernel.
    maker.af_alg_failure().map_or(found, Err)
}

fn time(
    aead: &mut SaAead,
    icv_len: usize,
    size: usize,
    packets: u32,
) -> std::result::Result<f64, SealError> {
    let text = vec![0; size];
    let sealed_len = size + icv_len;
    let mut sealed = vec![0; BATCH * sealed_len];
    let mut nonce = [0; NONCE_LEN];
    let mut numbers = 1..=packets;
    let began = Instant::now();
    while !numbers.is_empty() {
        let mut count = 0;
        for (out, seq) in sealed.chunks_mut(sealed_len).zip(&mut numbers) {
            nonce[NONCE_LEN - 4..].copy_from_slice(&seq.to_be_bytes());
            match aead {
                SaAead::Plain(aead) => aead.seal(&nonce, &AAD, &text, out)?,
                SaAead::Batched(aead) => aead.submit_seal(&nonce, &AAD, &text, out)?,
            }
            count += 1;
        }
        if let SaAead::Batched(aead) = aead {
            aead.complete_seals(&mut sealed.chunks_mut(sealed_len).take(count))?;
        }
    }
    Ok(began.elapsed().as_secs_f64() * 1e9 / f64::from(packets))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Mutex;

    use esp_core::esp::aead::{Aead, AuthError};
    use esp_core::sync::lock;

    use super::*;

    fn suite() -> &'static Suite {
        Suite::by_name("aes128gcm16").unwrap()
    }

    #[test]
    fn every_library_is_measured() {
        for provider in Provider::ALL {
            let found = seal_time(provider.name(), suite(), 1400, 100).unwrap();
            assert!(found > 0.0 && found.is_finite(), "{provider:?}: {found}");
        }
    }

    type Nonces = Arc<Mutex<Vec<[u8; NONCE_LEN]>>>;

    struct Counted(Nonces);

    impl Aead for Counted {
        fn seal(
            &mut self,
            nonce: &[u8; NONCE_LEN],
            aad: &[u8],
            text: &[u8],
            out: &mut [u8],
        ) -> std::result::Result<(), SealError> {
            assert_eq!((aad.len(), text.len(), out.len()), (8, 64, 76));
            lock(&self.0).push(*nonce);
            Ok(())
        }

        fn open(
            &mut self,
            _: &[u8; NONCE_LEN],
            _: &[u8],
            _: &[u8],
            _: &mut [u8],
        ) -> std::result::Result<(), AuthError> {
            unreachable!("nothing is opened")
        }
    }

    #[test]
    fn as_many_packets_are_sealed_as_were_asked_for_each_with_its_own_nonce() {
        let nonces = Nonces::default();
        let counted = Counted(Arc::clone(&nonces));
        time(&mut SaAead::Plain(Box::new(counted)), 12, 64, 1000).unwrap();
        let mut nonces = lock(&nonces);
        assert_eq!(nonces.len(), 1000);
        nonces.dedup();
        assert_eq!(nonces.len(), 1000);
    }

    #[test]
    fn what_is_out_of_bounds_is_refused_before_any_work() {
        let refused = |provider, size, packets| {
            let found = seal_time(provider, suite(), size, packets);
            matches!(found, Err(Error::Argument(_)))
        };
        assert!(refused("openssl", 0, 1));
        assert!(refused("openssl", MAX_SIZE + 1, 1));
        assert!(refused("openssl", 64, 0));
        assert!(refused("openssl", 64, MAX_PACKETS + 1));
        assert!(refused("openssl", MAX_SIZE, MAX_PACKETS));
        assert!(refused("rot13", 64, 1));
        let short = Suite::by_name("aes128gcm8").unwrap();
        assert!(matches!(
            seal_time("aws-lc", short, 64, 1),
            Err(Error::Argument(_))
        ));
    }
}
