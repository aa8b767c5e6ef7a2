//! Element types of weights, and the way between them and fp32.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};
use safetensors::Dtype as FileDtype;

/// Element type of stored weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    Bf16,
}

impl Dtype {
    /// Bytes of one element.
    pub fn num_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The name that `config.json` uses.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    /// The type of that name in `config.json`.
    pub fn from_torch_name(name: &str) -> Option<Self> {
        [Self::F32, Self::F16, Self::Bf16].into_iter().find(|dtype| dtype.torch_name() == name)
    }

    pub(super) fn from_file(dtype: FileDtype) -> Option<Self> {
        [Self::F32, Self::F16, Self::Bf16].into_iter().find(|known| known.to_file() == dtype)
    }

    pub(super) fn to_file(self) -> FileDtype {
        match self {
            Self::F32 => FileDtype::F32,
            Self::F16 => FileDtype::F16,
            Self::Bf16 => FileDtype::BF16,
        }
    }

    /// Widens little-endian elements to fp32. `bytes` holds as many elements as `out`.
    pub(super) fn widen(self, bytes: &[u8], out: &mut [f32]) {
        debug_assert_eq!(bytes.len(), out.len() * self.num_bytes());
        let halves = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
        match self {
            Self::F32 => fill(out, bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
            Self::F16 => fill(out, halves().map(|b| f16::from_le_bytes(b).to_f32())),
            Self::Bf16 => fill(out, halves().map(|b| bf16::from_le_bytes(b).to_f32())),
        }
    }

    /// Little-endian elements of this type, rounded to nearest even.
    pub(super) fn narrow(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            Self::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        }
    }
}

fn fill(out: &mut [f32], values: impl Iterator<Item = f32>) {
    out.iter_mut().zip(values).for_each(|(slot, value)| *slot = value);
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

impl FromStr for Dtype {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::F32, Self::F16, Self::Bf16]
            .into_iter()
            .find(|dtype| dtype.to_string() == text)
            .ok_or_else(|| format!("{text:?} is no element type; use bf16, f16 or f32"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrowing_rounds_to_nearest_even() {
        let half_way = [0x3f80_8000u32, 0x3f81_8000, 0x3f80_8001].map(f32::from_bits);
        let rounded = [0x3f80u16, 0x3f82, 0x3f81];
        assert_eq!(Dtype::Bf16.narrow(&half_way), rounded.map(u16::to_le_bytes).concat());
    }

    #[test]
    fn every_half_comes_back_to_the_bit() {
        for dtype in [Dtype::F16, Dtype::Bf16] {
            let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
            let mut wide = vec![0.0; 1 << 16];
            dtype.widen(&all, &mut wide);
            let back = dtype.narrow(&wide);
            for (n, value) in wide.iter().enumerate().filter(|(_, v)| !v.is_nan()) {
                assert_eq!(back[2 * n..2 * n + 2], all[2 * n..2 * n + 2], "{dtype} {n:#06x} = {value}");
            }
        }
    }
}
