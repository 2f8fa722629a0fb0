//! The exact bytes that are signed to prove possession of a key.

/// What a v1 handshake signs: the nonce, then the client's time as 8 bytes, big-endian.
pub fn v1_handshake(nonce: &[u8; 32], timestamp_secs: u64) -> [u8; 40] {
    let mut signed = [0; 40];
    let (first, last) = signed.split_at_mut(nonce.len());
    first.copy_from_slice(nonce);
    last.copy_from_slice(&timestamp_secs.to_be_bytes());
    signed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_v1_handshake_signs_nonce_and_big_endian_time() {
        let signed = v1_handshake(&[7; 32], 0x0102_0304_0506_0708);
        assert_eq!(signed[..32], [7; 32]);
        assert_eq!(signed[32..], [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}
