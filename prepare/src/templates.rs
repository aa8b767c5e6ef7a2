//! The templates that make a text of a translation pair (Marco-LLM, arXiv 2412.04003), and the choice among them.

use twox_hash::XxHash3_64;

const TEMPLATES: [&str; 11] = [
    "<src_lang> phrase: <input>\n<tgt_lang> phrase: <output>",
    "<src_lang> text: <input>\n<tgt_lang> text: <output>",
    "Translate the text from <src_lang> to <tgt_lang>:\n<src_lang> text: <input>\n<tgt_lang> text: <output>",
    "Translate the words from <src_lang> to <tgt_lang>:\n<src_lang> words: <input>\n<tgt_lang> words: <output>",
    "Convert the phrase from <src_lang> to <tgt_lang>:\n<src_lang> phrase: <input>\n<tgt_lang> phrase: <output>",
    "Render the <src_lang> sentence <input> to <tgt_lang>: <output>",
    "Provide the translation of the sentence <input> from <src_lang> to <tgt_lang>: <output>",
    "Change the phrase <input> to <tgt_lang>, the translated phrase is: <output>",
    "Please change the sentence <input> to <tgt_lang>, and the resulting translation is: <output>",
    "Change the phrase <input> to <tgt_lang>, resulting in: <output>",
    "The sentence <input> in <src_lang> means <output> in <tgt_lang>",
];

/// A pair to be put into words. Languages by their English names.
#[derive(Debug, Clone, Copy)]
pub struct Pair<'a> {
    /// Language of the input.
    pub src_lang: &'a str,
    /// Language of the output.
    pub tgt_lang: &'a str,
    /// The text.
    pub input: &'a str,
    /// Its translation.
    pub output: &'a str,
}

/// The text of `pair` number `number` of its file: which template it gets depends on `seed` and `number` only.
pub fn render(pair: Pair<'_>, seed: u64, number: u64) -> String {
    fill(TEMPLATES[(draw(seed, number) % TEMPLATES.len() as u64) as usize], pair)
}

/// Whether pair number `number` is turned round where either direction is wanted.
pub fn is_turned(seed: u64, number: u64) -> bool {
    draw(seed, number) >> 63 == 1
}

/// One of 2^64, evenly: XXH3 of the number, seeded.
fn draw(seed: u64, number: u64) -> u64 {
    XxHash3_64::oneshot_with_seed(seed, &number.to_le_bytes())
}

/// One pass, so that a text that mentions a placeholder stays as it is.
fn fill(template: &str, pair: Pair<'_>) -> String {
    let mut text = String::with_capacity(template.len() + pair.input.len() + pair.output.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('<') {
        text.push_str(before);
        let Some((name, after)) = after.split_once('>') else { break };
        text.push_str(match name {
            "src_lang" => pair.src_lang,
            "tgt_lang" => pair.tgt_lang,
            "input" => pair.input,
            _ => pair.output,
        });
        rest = after;
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIR: Pair<'static> = Pair { src_lang: "English", tgt_lang: "German", input: "<output>", output: "Ausgabe" };

    #[test]
    fn all_eleven_are_as_published() {
        let texts: Vec<String> = TEMPLATES.iter().map(|template| fill(template, PAIR)).collect();
        assert_eq!(
            texts,
            [
                "English phrase: <output>\nGerman phrase: Ausgabe",
                "English text: <output>\nGerman text: Ausgabe",
                "Translate the text from English to German:\nEnglish text: <output>\nGerman text: Ausgabe",
                "Translate the words from English to German:\nEnglish words: <output>\nGerman words: Ausgabe",
                "Convert the phrase from English to German:\nEnglish phrase: <output>\nGerman phrase: Ausgabe",
                "Render the English sentence <output> to German: Ausgabe",
                "Provide the translation of the sentence <output> from English to German: Ausgabe",
                "Change the phrase <output> to German, the translated phrase is: Ausgabe",
                "Please change the sentence <output> to German, and the resulting translation is: Ausgabe",
                "Change the phrase <output> to German, resulting in: Ausgabe",
                "The sentence <output> in English means Ausgabe in German",
            ]
        );
    }

    #[test]
    fn the_choice_is_even_and_follows_seed_and_number_only() {
        let mut counts = [0; TEMPLATES.len()];
        (0..11_000).for_each(|number| counts[(draw(7, number) % 11) as usize] += 1);
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
        let all = |seed| (0..50).map(|number| render(PAIR, seed, number)).collect::<Vec<_>>();
        assert_eq!(all(7), all(7));
        assert_ne!(all(7), all(8));
        let num_turned = (0..10_000).filter(|number| is_turned(7, *number)).count();
        assert!((4_700..5_300).contains(&num_turned), "{num_turned}");
    }
}
