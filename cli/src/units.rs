//! Numbers with units, as people write and read them.

const BYTE_UNITS: [(&str, f64); 9] = [
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
    ("TiB", 1_099_511_627_776.0),
    ("kB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("TB", 1e12),
    ("B", 1.0),
];
const FLOPS_UNITS: [(&str, f64); 3] = [("GFLOPS", 1e9), ("TFLOPS", 1e12), ("PFLOPS", 1e15)];

/// Reads a size such as `80GiB`.
pub fn bytes(text: &str) -> Result<u64, String> {
    // Sizes are far below where a float would lose whole bytes that matter; larger ones saturate.
    quantity(text, &BYTE_UNITS, "80GiB").map(|bytes| bytes as u64)
}

/// Reads cores such as `8` or `0.5`, in thousandths.
pub fn millicores(text: &str) -> Result<u64, String> {
    let cores: f64 = text.trim().parse().map_err(|_| "not a number of cores; write it like 8 or 0.5".to_owned())?;
    let millicores = (cores * 1000.0).round();
    if millicores >= 1.0 { Ok(millicores as u64) } else { Err("it has to be at least 0.001".into()) }
}

/// Reads a rate such as `50GB/s`, in bytes a second.
pub fn bytes_per_second(text: &str) -> Result<f64, String> {
    let example = "50GB/s";
    let amount = text.trim().strip_suffix("/s").ok_or_else(|| format!("not a rate; write it like {example}"))?;
    quantity(amount, &BYTE_UNITS, example)
}

/// Reads a rate such as `400TFLOPS`, in operations a second.
pub fn flops(text: &str) -> Result<f64, String> {
    quantity(text, &FLOPS_UNITS, "400TFLOPS")
}

fn quantity(text: &str, units: &[(&str, f64)], example: &str) -> Result<f64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim());
    let names = || units.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let factor = units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
    let factor = factor.ok_or_else(|| match unit {
        "" => format!("there is no unit; write it like {example}, in one of {}", names()),
        _ => format!("there is no unit {unit:?}; write it like {example}, in one of {}", names()),
    })?;
    let number: f64 =
        number.parse().map_err(|_| format!("there is no number before {unit}; write it like {example}"))?;
    if number > 0.0 { Ok(number * factor) } else { Err(format!("it has to be above 0, like {example}")) }
}

/// A size in GiB, aligned with others.
pub fn gib(bytes: u64) -> String {
    format!("{:>10.3} GiB", bytes as f64 / 1_073_741_824.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_may_be_parts() {
        assert_eq!(["8", "0.5", "0.001"].map(millicores), [Ok(8000), Ok(500), Ok(1)]);
        for text in ["0", "-1", "0.0001", "8 cores", ""] {
            assert!(millicores(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_have_their_units_factors() {
        for (text, expected) in
            [("80GiB", 80 << 30), ("80GB", 80_000_000_000), (" 40000 MiB ", 40_000 << 20), ("0.5KiB", 512)]
        {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        assert_eq!((bytes_per_second("50GB/s"), flops("400TFLOPS")), (Ok(5e10), Ok(4e14)));
    }

    #[test]
    fn what_is_not_a_quantity_is_refused_with_an_example() {
        for (text, mention) in [
            ("80", "no unit"),
            ("80GiBs", "\"GiBs\""),
            ("GiB", "no number"),
            ("1.2.3GB", "no number"),
            ("0GB", "above 0"),
        ] {
            let message = bytes(text).expect_err(text);
            assert!(message.contains(mention) && message.contains("like 80GiB"), "{message}");
        }
        assert!(bytes("-3GiB").is_err() && bytes_per_second("50GB").is_err() && flops("4GB").is_err());
    }
}
