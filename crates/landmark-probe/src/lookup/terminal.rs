//! What was looked up, as text: a strip of the whole memory, then the blocks of each token of the answer.
//!
//! The strip shows all blocks at once, several in a cell if need be; a cell is as high as the largest share in it. Text of
//! blocks is shown in excerpts of one line, without anything that a terminal would obey.

use std::fmt::Write;

use super::{Choice, Lookup};
use crate::table::printable;

/// How the text looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Columns.
    pub width: usize,
    /// Blocks shown for each token.
    pub top: usize,
    /// Tokens shown one by one; the strip is of all of them.
    pub tokens: usize,
    /// Whether to use colours.
    pub colours: bool,
}

impl Default for Look {
    fn default() -> Look {
        Look { width: 100, top: 3, tokens: 40, colours: false }
    }
}

pub(super) fn to_text(lookup: &Lookup, look: &Look) -> String {
    let mut text = String::new();
    let count = lookup.blocks.len();
    let plural = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
    let _ = writeln!(
        text,
        "{}: {}, {}, {} each",
        printable(&lookup.title),
        plural(count, "block"),
        plural(lookup.layers, "layer"),
        plural(lookup.heads, "head")
    );
    if count == 0 {
        return text + "nothing was in the memory\n";
    }
    let cells = look.width.clamp(10, 1000).min(count);
    let _ = writeln!(text, "{}", strip(&lookup.shares(Choice::default()), cells));
    if !lookup.needle.is_empty() {
        let _ = writeln!(text, "{}", arrows(&lookup.needle, count, cells));
    }
    for (number, token) in lookup.answer.iter().enumerate().take(look.tokens) {
        let choice = Choice { token: Some(number), ..Choice::default() };
        let top = lookup.top(choice, look.top);
        let name = format!("{:>3} {:<12}", number + 1, quoted(&token.text));
        if top.is_empty() {
            let _ = writeln!(text, "{name} nothing fetched");
        }
        for (place, (block, share)) in top.into_iter().enumerate() {
            let name = if place == 0 { name.clone() } else { " ".repeat(name.chars().count()) };
            let mark = if lookup.needle.contains(&block) { "*" } else { " " };
            let head = format!("{name} {:>5} % {mark}block {block:<6} ", percent(share));
            let room = look.width.saturating_sub(head.chars().count()).max(16);
            let excerpt = excerpt(&lookup.blocks[block].text, room);
            let _ = match look.colours {
                true if mark == "*" => writeln!(text, "\x1b[1;32m{head}\x1b[0m{excerpt}"),
                true => writeln!(text, "{head}\x1b[2m{excerpt}\x1b[0m"),
                false => writeln!(text, "{head}{excerpt}"),
            };
        }
    }
    let left = lookup.answer.len().saturating_sub(look.tokens);
    if left > 0 {
        let _ = writeln!(text, "... and {}", plural(left, "more token"));
    }
    text
}

/// All blocks in `cells` cells, the highest as high as a cell is.
fn strip(shares: &[f64], cells: usize) -> String {
    const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = shares.iter().copied().fold(0.0, f64::max);
    let cell = |cell: usize| {
        let (begin, end) = (cell * shares.len() / cells, (cell + 1) * shares.len() / cells);
        let share = shares[begin..end].iter().copied().fold(0.0, f64::max);
        match share > 0.0 {
            true => HEIGHTS[(share / most * 7.0).round() as usize],
            false => '·',
        }
    };
    (0..cells).map(cell).collect()
}

/// Arrows below the strip, at the blocks that should have been found.
fn arrows(needle: &[usize], blocks: usize, cells: usize) -> String {
    let is_here = |cell: usize| {
        let range = cell * blocks / cells..(cell + 1) * blocks / cells;
        needle.iter().any(|block| range.contains(block))
    };
    let line: String = (0..cells).map(|cell| if is_here(cell) { '↑' } else { ' ' }).collect();
    line.trim_end().to_owned()
}

/// A share in percent, to a tenth; less than that is not nothing.
fn percent(share: f64) -> String {
    if share < 0.0005 { "<0.1".to_owned() } else { format!("{:.1}", share * 100.0) }
}

fn quoted(text: &str) -> String {
    let text = text.replace('\n', "\\n");
    format!("{:?}", printable(&text)).replace("\\\\n", "\\n")
}

/// One line from a text, of at most `room` characters.
fn excerpt(text: &str, room: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = printable(&line);
    match line.char_indices().nth(room) {
        None => line,
        Some(_) => line.chars().take(room.saturating_sub(1)).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Block;
    use super::super::tests::{fetch, lookup};
    use super::*;

    #[test]
    fn a_view_by_hand() {
        let expected = "\
a model: 4 blocks, 2 layers, 2 heads each
▂█▇▂
 ↑
  1 \" 47\"         31.2 % *block 1      The pass key is 4711, remember
                   6.2 %  block 0      The first block.
  2 \"11\"          50.0 % *block 1      The pass key is 4711, remember
";
        let mut lookup = lookup();
        // 0.125, 0.625 + 1, ... of 8 heads.
        lookup.answer[1].fetched = vec![fetch(0, 0, 1, 1.0), fetch(1, 1, 1, 1.0)];
        let look = Look { top: 2, ..Look::default() };
        let text = lookup.to_text(&look);
        let (expected_head, expected_tokens) = expected.split_once(" ↑\n").unwrap();
        let (head, tokens) = text.split_once(" ↑\n").unwrap();
        assert_eq!(tokens, expected_tokens);
        // Shares 0.03125, 0.40625, 0, 0.015625.
        assert_eq!(head, expected_head.replace("▂█▇▂", "▂█·▁"));
    }

    #[test]
    fn strips_hold_all_blocks() {
        assert_eq!(strip(&[0.0, 0.1, 0.2, 0.0], 4), "·▅█·");
        assert_eq!(strip(&[0.0, 0.1, 0.2, 0.0], 2), "▅█");
        assert_eq!(strip(&[0.0; 3], 3), "···");
        let mut shares = vec![0.0; 20_001];
        shares[20_000] = 0.3;
        let strip = strip(&shares, 80);
        assert_eq!([percent(0.0005), percent(0.000_49), percent(1.0)], ["0.1", "<0.1", "100.0"]);
        assert!(strip.ends_with("·█") && strip.chars().count() == 80);
        assert_eq!(arrows(&[20_000], 20_001, 80), format!("{}↑", " ".repeat(79)));
    }

    #[test]
    fn hostile_and_long_text_is_harmless() {
        let mut lookup = lookup();
        lookup.blocks[1] =
            Block { text: format!("\x1b]0;title\x07\n\u{202e}{}", "x".repeat(1000)), first_token: 0 };
        lookup.answer[0].text = "\x1b[2J\n".into();
        let text = lookup.to_text(&Look::default());
        assert!(!text.contains(['\x1b', '\x07', '\u{202e}']) && text.contains("\"·[2J\\n\""), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        assert!(lookup.to_text(&Look { colours: true, ..Look::default() }).contains("\x1b[1;32m"));
        let none = Lookup { blocks: vec![], needle: vec![], answer: vec![], ..lookup };
        assert!(none.to_text(&Look::default()).contains("nothing was in the memory"));
    }
}
