//! The table of a recipe's tokens, as people read it.

use std::fmt::Write;

use polo_recipe::tokens::{Amount, SourceTotal, StageTable, TokenTable};

/// One table for each stage, in which a group's row has its sources below it, and one for all stages together.
pub fn to_text(table: &TokenTable) -> String {
    let names = table.sources.iter().map(|source| &source.source);
    let groups = table.stages.iter().flat_map(|stage| &stage.groups).filter_map(|group| group.group.as_ref());
    // A source's row is indented by two.
    let width = names.chain(groups).map(|name| name.chars().count()).max().unwrap_or_default() + 2;
    let mut text = String::new();
    table.stages.iter().for_each(|stage| write_stage(&mut text, stage, width));
    write_total(&mut text, table, width);
    text
}

fn write_stage(text: &mut String, stage: &StageTable, width: usize) {
    let StageTable { stage: name, num_steps, peak_learning_rate, .. } = stage;
    let _ = writeln!(text, "stage {name}: {num_steps} steps, peak learning rate {peak_learning_rate:e}\n");
    let _ = writeln!(text, "{:<width$}  {:>9}  {:>12}  {:>12}", "", "share", "tokens", "samples");
    let mut row = |name: &str, share: f64, amount: Amount| {
        let _ = writeln!(text, "{name:<width$}  {:>9}  {}", percent(share), columns(amount));
    };
    for group in &stage.groups {
        group.group.iter().for_each(|name| row(name, group.share, group.total));
        let indent = if group.group.is_some() { "  " } else { "" };
        group.sources.iter().for_each(|source| row(&format!("{indent}{}", source.source), source.share, source.amount));
    }
    row("total", 1.0, stage.total);
    text.push('\n');
}

fn write_total(text: &mut String, table: &TokenTable, width: usize) {
    let is_known = table.sources.iter().any(|source| source.num_available_tokens.is_some());
    let available = if is_known { format!("  {:>12}  {:>9}", "available", "used") } else { String::new() };
    let _ = writeln!(text, "all stages\n\n{:<width$}  {:>12}  {:>12}{available}", "", "tokens", "samples");
    for source in &table.sources {
        let _ = writeln!(text, "{:<width$}  {}{}", source.source, columns(source.amount), use_of(source));
    }
    let _ = writeln!(text, "{:<width$}  {}", "total", columns(table.total));
}

fn use_of(source: &SourceTotal) -> String {
    match (source.num_available_tokens, source.fraction_used) {
        (Some(available), Some(fraction)) => format!("  {:>12}  {:>9}", short(available), percent(fraction)),
        _ => String::new(),
    }
}

fn columns(amount: Amount) -> String {
    format!("{:>12}  {:>12}", short(amount.num_tokens), amount.num_samples)
}

/// In millions or billions from the first of them on.
fn short(num_tokens: u64) -> String {
    match num_tokens {
        0..1_000_000 => num_tokens.to_string(),
        1_000_000..1_000_000_000 => format!("{:.1} M", num_tokens as f64 / 1e6),
        _ => format!("{:.1} B", num_tokens as f64 / 1e9),
    }
}

fn percent(fraction: f64) -> String {
    format!("{:.2} %", fraction * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_enough_to_compare() {
        let shorts = [0, 999_999, 1_000_000, 757_900_000, 90_400_000_000].map(short);
        assert_eq!(shorts, ["0", "999999", "1.0 M", "757.9 M", "90.4 B"]);
        assert_eq!(percent(0.0375), "3.75 %");
    }
}
