//! Fresh parameters: a pure function of seed, tensor name and element index, on every machine the same.
//!
//! Normal numbers come in pairs by Box and Muller's transform from a counter-based generator (the finaliser of
//! SplitMix64, keyed by BLAKE3 of seed and name). Logarithm, sine and cosine are polynomials here, because those of the
//! system's C library differ between its versions.

use std::f64::consts::{FRAC_PI_2, LN_2, SQRT_2};

use polo_recipe::layout::{Init, Layout, TensorSpec};

/// Fills `flat`, of the layout's length, by each tensor's [`Init`].
pub fn initialize(flat: &mut [f32], layout: &Layout, initializer_range: f64, seed: u64) {
    assert_eq!(flat.len(), layout.num_params, "a flat vector must have the layout's length");
    let take = |tensor: &TensorSpec, values: &[f32]| flat[tensor.range()].copy_from_slice(values);
    initialize_tensors(layout, initializer_range, seed, |_| true, take);
}

/// Makes the tensors that are wanted, and hands each to `take`.
pub fn initialize_tensors(
    layout: &Layout,
    initializer_range: f64,
    seed: u64,
    is_wanted: impl Fn(&TensorSpec) -> bool,
    mut take: impl FnMut(&TensorSpec, &[f32]),
) {
    let mut values = Vec::new();
    for tensor in layout.tensors.iter().filter(|tensor| is_wanted(tensor)) {
        values.resize(tensor.numel(), 0.0);
        fill(&mut values, tensor, initializer_range, seed);
        take(tensor, &values);
    }
}

fn fill(values: &mut [f32], tensor: &TensorSpec, initializer_range: f64, seed: u64) {
    match tensor.init {
        Init::Ones => values.fill(1.0),
        Init::Zeros => values.fill(0.0),
        Init::Normal => fill_normal(values, tensor_key(seed, &tensor.name), initializer_range),
    }
}

/// The key of a tensor's numbers.
fn tensor_key(seed: u64, name: &str) -> u64 {
    let mut hasher = blake3::Hasher::new_derive_key("polo fresh parameters v1");
    hasher.update(&seed.to_le_bytes()).update(name.as_bytes());
    let mut key = [0; 8];
    hasher.finalize_xof().fill(&mut key);
    u64::from_le_bytes(key)
}

/// Element i is number `i % 2` of pair `i / 2`.
fn fill_normal(values: &mut [f32], key: u64, standard_deviation: f64) {
    for (pair, elements) in (0u64..).zip(values.chunks_mut(2)) {
        let normals = normal_pair(mix(key, pair));
        for (element, normal) in elements.iter_mut().zip(normals) {
            *element = (normal * standard_deviation) as f32;
        }
    }
}

/// Sixty-four random bits for a counter.
fn mix(key: u64, counter: u64) -> u64 {
    let mut z = key.wrapping_add(counter.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Two independent standard normal numbers from the two halves of `bits`.
fn normal_pair(bits: u64) -> [f64; 2] {
    const STEP: f64 = 1.0 / 4_294_967_296.0;
    let radius = (-2.0 * ln(((bits >> 32) + 1) as f64 * STEP)).sqrt();
    let (sine, cosine) = sin_cos_of_turn((bits & 0xFFFF_FFFF) as f64 * STEP);
    [radius * cosine, radius * sine]
}

/// Natural logarithm of a positive normal number, to about 1e-12.
fn ln(x: f64) -> f64 {
    let mut exponent = (x.to_bits() >> 52) as i64 - 1023;
    let mut mantissa = f64::from_bits(x.to_bits() & 0x000F_FFFF_FFFF_FFFF | 0x3FF0_0000_0000_0000);
    if mantissa > SQRT_2 {
        mantissa *= 0.5;
        exponent += 1;
    }
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let odd = polynomial(s * s, &[1.0, 1.0 / 3.0, 1.0 / 5.0, 1.0 / 7.0, 1.0 / 9.0, 1.0 / 11.0, 1.0 / 13.0]);
    exponent as f64 * LN_2 + 2.0 * s * odd
}

/// Sine and cosine of `turn * 2 pi` for `turn` in 0..1, to about 1e-12: Taylor series around the nearest quarter.
fn sin_cos_of_turn(turn: f64) -> (f64, f64) {
    let quarter = (turn * 4.0 + 0.5).floor();
    let angle = (turn * 4.0 - quarter) * FRAC_PI_2;
    let square = angle * angle;
    let sine = angle
        * polynomial(square, &[1.0, -1.0 / 6.0, 1.0 / 120.0, -1.0 / 5040.0, 1.0 / 362_880.0, -1.0 / 39_916_800.0]);
    let cosine = polynomial(
        square,
        &[1.0, -0.5, 1.0 / 24.0, -1.0 / 720.0, 1.0 / 40_320.0, -1.0 / 3_628_800.0, 1.0 / 479_001_600.0],
    );
    match quarter as u32 % 4 {
        0 => (sine, cosine),
        1 => (cosine, -sine),
        2 => (-sine, -cosine),
        _ => (-cosine, sine),
    }
}

/// `c[0] + c[1] x + c[2] x^2 ...`
fn polynomial(x: f64, coefficients: &[f64]) -> f64 {
    coefficients.iter().rev().fold(0.0, |sum, c| sum * x + c)
}

#[cfg(test)]
mod tests {
    use polo_recipe::model::Qwen2Config;

    use super::*;

    fn normals(count: usize, name: &str) -> Vec<f32> {
        let mut values = vec![0.0; count];
        fill_normal(&mut values, tensor_key(7, name), 1.0);
        values
    }

    #[test]
    fn logarithm_sine_and_cosine_are_right() {
        for i in 1..10_000 {
            let x = f64::from(i) / 10_000.0;
            assert!((ln(x) - x.ln()).abs() < 1e-11, "ln({x})");
            let (sine, cosine) = sin_cos_of_turn(x);
            let (want_sine, want_cosine) = (x * std::f64::consts::TAU).sin_cos();
            assert!((sine - want_sine).abs() < 1e-9 && (cosine - want_cosine).abs() < 1e-9, "turn {x}");
        }
    }

    #[test]
    fn numbers_are_standard_normal_in_mean_variance_tails_and_correlation() {
        let x = normals(1_000_000, "a");
        let mean = |f: &dyn Fn(usize) -> f64| (0..x.len()).map(f).sum::<f64>() / x.len() as f64;
        assert!(mean(&|i| f64::from(x[i])).abs() < 4e-3);
        assert!((mean(&|i| f64::from(x[i]).powi(2)) - 1.0).abs() < 6e-3);
        assert!((mean(&|i| f64::from(x[i]).powi(4)) - 3.0).abs() < 5e-2);
        assert!((mean(&|i| f64::from(u8::from(x[i].abs() > 2.575_83))) - 0.01).abs() < 5e-4);
        for lag in [1, 2, 3] {
            assert!(mean(&|i| f64::from(x[i]) * f64::from(x[(i + lag) % x.len()])).abs() < 4e-3);
        }
    }

    #[test]
    fn an_element_depends_on_seed_name_and_index_alone() {
        let (long, short) = (normals(1001, "a"), normals(10, "a"));
        assert_eq!(long[..10], short);
        assert_ne!(short, normals(10, "b"));
        assert_ne!(tensor_key(1, "a"), tensor_key(2, "a"));
    }

    #[test]
    fn every_tensor_is_filled_by_its_rule_and_the_bits_never_change() {
        let config: Qwen2Config = serde_json::from_str(
            r#"{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
                "intermediate_size": 24, "vocab_size": 50}"#,
        )
        .expect("config");
        let layout = Layout::qwen2(&config);
        let mut flat = vec![f32::NAN; layout.num_params];
        initialize(&mut flat, &layout, 0.02, 42);
        let of = |name: &str| &flat[layout.tensor(name).expect(name).range()];
        assert!(of("model.norm.weight").iter().all(|&v| v == 1.0));
        assert!(of("model.layers.0.self_attn.k_proj.bias").iter().all(|&v| v == 0.0));
        assert!(flat.iter().all(|v| v.is_finite()));
        let digest = blake3::hash(&flat.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
        assert_eq!(digest.to_hex().as_str()[..16], *"1dc610397f7c9a26");
    }
}
