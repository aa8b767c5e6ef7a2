//! MinHash with banding (Broder 1997; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, chapter 3).

use twox_hash::XxHash3_64;

use super::units::{Units, mixed};

/// The hash functions and how they fall into bands.
#[derive(Debug)]
pub struct MinHash {
    ngram: usize,
    rows: usize,
    keys: Vec<u64>,
}

impl MinHash {
    /// `bands` bands of `rows` hashes of the n-grams of `ngram` words.
    pub fn new(ngram: usize, bands: usize, rows: usize) -> Self {
        let keys = (1..=(bands * rows) as u64).map(|number| mixed(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        Self { ngram, rows, keys: keys.collect() }
    }

    /// Number of bands.
    pub fn num_bands(&self) -> usize {
        self.keys.len() / self.rows
    }

    /// A number for each band; the band's own number is in it, so all bands go into one set.
    pub fn bands(&self, units: &Units) -> Vec<u64> {
        // A text of fewer words than an n-gram is one n-gram.
        let ngram = self.ngram.min(units.len().max(1));
        let mut least = vec![u64::MAX; self.keys.len()];
        for hash in units.ngrams(ngram) {
            for (least, key) in least.iter_mut().zip(&self.keys) {
                // Multiply-shift with odd factors, high bits first; two rounds, since one alone is too regular.
                let value = (hash ^ key).wrapping_mul(key | 1);
                *least = (*least).min((value ^ (value >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            }
        }
        let band = |(number, rows): (usize, &[u64])| {
            let bytes: Vec<u8> = rows.iter().flat_map(|value| value.to_le_bytes()).collect();
            XxHash3_64::oneshot_with_seed(number as u64, &bytes)
        };
        least.chunks(self.rows).enumerate().map(band).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two texts of `num_words` words whose n-grams of one word have Jaccard similarity `num_shared / (2n - shared)`.
    fn pair(seed: usize, num_words: usize, num_shared: usize) -> (Units, Units) {
        let word = |side: usize, number: usize| {
            if number < num_shared { format!("s{seed}x{number} ") } else { format!("d{side}s{seed}x{number} ") }
        };
        let text = |side| (0..num_words).map(|number| word(side, number)).collect::<String>();
        (Units::of(&text(0)), Units::of(&text(1)))
    }

    #[test]
    fn bands_agree_as_often_as_the_formula_says() {
        let minhash = MinHash::new(1, 14, 8);
        for (num_shared, similarity) in [(80, 80.0 / 120.0), (84, 84.0 / 116.0), (90, 90.0 / 110.0)] {
            let expected = 1.0 - (1.0 - f64::powi(similarity, 8)).powi(14);
            let is_found = |seed: &usize| {
                let (a, b) = pair(*seed, 100, num_shared);
                minhash.bands(&a).iter().zip(minhash.bands(&b)).any(|(a, b)| *a == b)
            };
            let found = (0..1_000).filter(is_found).count() as f64 / 1_000.0;
            assert!((found - expected).abs() < 0.06, "similarity {similarity}: {found} instead of {expected}");
        }
    }

    #[test]
    fn short_and_empty_texts_have_bands() {
        let minhash = MinHash::new(5, 14, 8);
        let bands = |text| minhash.bands(&Units::of(text));
        assert_eq!(bands("two words"), bands("Two words!"));
        assert_ne!(bands("two words"), bands("three words"));
        assert_eq!(bands("").len(), 14);
    }
}
