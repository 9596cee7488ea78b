//! Logarithm, exponential and the normal distribution, the same to the last bit on every machine.
//!
//! What is learned is folded from the log, and every instance must come to the same. The four operations and the square root
//! are exact by IEEE 754; what a system's library makes of `ln` and `exp` is not. These use the four operations alone.

/// The natural logarithm of a number that is greater than 0. Of anything else, the least there is.
pub(crate) fn ln(x: f64) -> f64 {
    let bits = x.max(f64::MIN_POSITIVE).to_bits();
    let mut exponent = (bits >> 52) as i32 - 1023;
    let mut mantissa = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if mantissa > std::f64::consts::SQRT_2 {
        (mantissa, exponent) = (mantissa / 2.0, exponent + 1);
    }
    // ln m = 2 artanh((m - 1) / (m + 1)); with |s| < 0.172 the eleventh term is below the last bit.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let mut sum = 0.0;
    for divisor in (0..11).rev() {
        sum = sum * square + 1.0 / f64::from(2 * divisor + 1);
    }
    f64::from(exponent) * std::f64::consts::LN_2 + 2.0 * s * sum
}

/// The reciprocals of the factorials, from that of 13 to that of 0.
const TERMS: [f64; 14] = {
    let (mut terms, mut factorial, mut n) = ([1.0; 14], 1.0, 0);
    while n < 13 {
        n += 1;
        factorial *= n as f64;
        terms[13 - n] = 1.0 / factorial;
    }
    terms
};

/// `e` to the power of `x`, for what is neither huge nor nothing: `x` is taken to be from -600 to 600.
pub(crate) fn exp(x: f64) -> f64 {
    let x = x.clamp(-600.0, 600.0);
    let halves = (x / std::f64::consts::LN_2 + 0.5).floor();
    let rest = x - halves * std::f64::consts::LN_2;
    // |rest| < 0.35: the fourteenth term is below the last bit.
    let sum = TERMS.iter().fold(0.0, |sum, term| sum * rest + term);
    sum * f64::from_bits(((halves as i64 + 1023) as u64) << 52)
}

/// How likely a standard normal variable is greater than `z`, within a ten-millionth of it.
///
/// The complementary error function by Chebyshev fitting: Press et al., *Numerical Recipes*, 2nd edition, section 6.2.
pub(crate) fn tail(z: f64) -> f64 {
    const FIT: [f64; 10] = [
        0.170_872_77,
        -0.822_152_23,
        1.488_515_87,
        -1.135_203_98,
        0.278_868_07,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_68,
        -1.265_512_23,
    ];
    let x = z.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.5 * x);
    let fit = FIT.iter().fold(0.0, |sum, term| sum * t + term);
    let upper = 0.5 * t * exp(-x * x + fit);
    if z < 0.0 { 1.0 - upper } else { upper }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn o6_logarithm_and_exponential_are_those_of_the_library_nearly_to_the_last_bit() {
        for n in -4000..4000 {
            let x = f64::from(n) / 7.0;
            let (ours, theirs) = (exp(x), x.exp());
            assert!((ours / theirs - 1.0).abs() < 1e-13, "exp({x}) is {theirs}, not {ours}");
            let (ours, theirs) = (ln(theirs), theirs.ln());
            assert!((ours - theirs).abs() <= 1e-15 * (1.0 + theirs.abs()), "the logarithm is {theirs}, not {ours}");
        }
        assert!(ln(0.0) < -700.0 && ln(-1.0) < -700.0 && ln(f64::NAN) < -700.0);
        assert!(exp(1e9).is_finite() && exp(-1e9) > 0.0);
    }

    #[test]
    fn o6_the_tail_of_the_normal_distribution_is_that_of_the_tables() {
        for (z, of_table) in
            [(0.0, 0.5), (1.0, 0.158_655_25), (-1.0, 0.841_344_75), (3.0, 1.349_898e-3), (6.0, 9.865_876e-10)]
        {
            let ours = tail(z);
            assert!((ours / of_table - 1.0).abs() < 1e-6, "beyond {z} there is {of_table}, not {ours}");
        }
    }
}
