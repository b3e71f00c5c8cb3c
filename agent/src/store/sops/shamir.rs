//! Shamir's secret sharing over GF(2⁸) with the polynomial of AES, as sops splits a data key among key groups: the last
//! byte of a share is its x, the others are y for each byte of the secret.

use zeroize::Zeroizing;

/// The secret behind `shares`; none when they cannot be shares of one secret. Too few shares give other bytes, which
/// only the use of them shows.
pub(super) fn combine(shares: &[Zeroizing<Vec<u8>>]) -> Option<Zeroizing<Vec<u8>>> {
    let points: Vec<(u8, &[u8])> =
        shares.iter().map(|share| share.split_last().map(|(x, ys)| (*x, ys))).collect::<Option<_>>()?;
    let length = points.first()?.1.len();
    let fit = points.iter().enumerate().all(|(at, (x, ys))| {
        *x != 0 && ys.len() == length && points.iter().take(at).all(|(other, _)| other != x)
    });
    if points.len() < 2 || length == 0 || !fit {
        return None;
    }
    // The polynomial's value at 0 by Lagrange; in this field, minus is plus.
    let mut secret = Zeroizing::new(vec![0; length]);
    for (x, ys) in &points {
        let basis = points
            .iter()
            .filter(|(other, _)| other != x)
            .fold(1, |product, (other, _)| multiply(product, multiply(*other, invert(x ^ other))));
        for (sum, y) in secret.iter_mut().zip(*ys) {
            *sum ^= multiply(basis, *y);
        }
    }
    Some(secret)
}

/// Without branches or tables, as the operands are secret.
fn multiply(a: u8, b: u8) -> u8 {
    (0..8).rev().fold(0, |sum: u8, bit| {
        let doubled = (sum << 1) ^ (0x1b & (sum >> 7).wrapping_neg());
        doubled ^ (a & ((b >> bit) & 1).wrapping_neg())
    })
}

/// a²⁵⁴, which is 1/a.
fn invert(a: u8) -> u8 {
    let mut power = 1;
    for _ in 0..254 {
        power = multiply(power, a);
    }
    power
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shares of a line or parabola: y = secret + c₁x + c₂x².
    fn share(secret: &[u8], coefficients: &[u8], x: u8) -> Zeroizing<Vec<u8>> {
        let mut power = 1;
        let mut ys = secret.to_vec();
        for coefficient in coefficients {
            power = multiply(power, x);
            for y in &mut ys {
                *y ^= multiply(*coefficient, power);
            }
        }
        ys.push(x);
        Zeroizing::new(ys)
    }

    #[test]
    fn arithmetic() {
        // FIPS 197 §4.2: {57} • {83} = {c1}, {57} • {13} = {fe}
        assert_eq!((multiply(0x57, 0x83), multiply(0x57, 0x13)), (0xc1, 0xfe));
        assert!((1..=255).all(|a| multiply(a, invert(a)) == 1));
    }

    #[test]
    fn any_three_of_five_are_enough_and_two_are_not() {
        let shares: Vec<_> = (1..=5).map(|x| share(b"secret", &[0x5a, 0xc3], x)).collect();
        let pick = |which: &[usize]| which.iter().map(|&at| shares[at].clone()).collect::<Vec<_>>();
        for which in [[0, 1, 2], [4, 2, 0], [1, 3, 4]] {
            assert_eq!(combine(&pick(&which)).unwrap().as_slice(), b"secret");
        }
        assert_ne!(combine(&pick(&[0, 1])).unwrap().as_slice(), b"secret");
    }

    #[test]
    fn what_are_no_shares() {
        let shares: Vec<_> = (1..=2).map(|x| share(b"secret", &[9], x)).collect();
        assert_eq!(combine(&[]), None);
        assert_eq!(combine(&shares[..1]), None);
        assert_eq!(combine(&[shares[0].clone(), shares[0].clone()]), None);
        assert_eq!(combine(&[shares[0].clone(), Zeroizing::new(vec![1, 2])]), None);
        assert_eq!(combine(&[Zeroizing::new(vec![1]), Zeroizing::new(vec![2])]), None);
        assert_eq!(
            combine(&[Zeroizing::new(vec![1, 0]), Zeroizing::new(vec![2, 1])]),
            None,
            "x = 0 is the secret"
        );
    }
}
