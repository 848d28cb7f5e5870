//! GPT-2's pre-tokenizer by hand: text is cut into pieces, and byte-pair merges never cross from one piece to
//! the next.
//!
//! The rule is the regular expression
//!
//! ```text
//! '(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//! ```
//!
//! which needs a look-ahead, so a backtracking engine has to run it, and that engine takes most of the time of
//! a GPT-2 encoder. The rule needs no backtracking, though: the first one or two characters decide which
//! alternative matches, and each alternative is a run of one class of characters. What is left is a table look-up
//! per character. The classes come from `regex-syntax`, the same Unicode tables that the expression would be
//! compiled from; tests hold this file against the expression itself.

use regex_syntax::hir::{Class as HirClass, HirKind};

/// What the rule distinguishes about a character.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Class {
    /// Neither letter, number nor white space.
    Other,
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `\s`
    Space,
}

/// The class of every code point.
pub(super) struct Splitter {
    classes: Box<[Class]>,
}

impl Splitter {
    pub(super) fn new() -> Self {
        let mut classes = vec![Class::Other; char::MAX as usize + 1].into_boxed_slice();
        for (pattern, class) in [(r"\p{L}", Class::Letter), (r"\p{N}", Class::Number), (r"\s", Class::Space)]
        {
            for (first, last) in ranges(pattern) {
                classes[first as usize..=last as usize].fill(class);
            }
        }
        Self { classes }
    }

    /// The end, in bytes, of the piece of `text` that starts at byte `start`.
    ///
    /// `start` is less than `text.len()` and lies on a character.
    #[inline]
    pub(super) fn piece_end(&self, text: &str, start: usize) -> usize {
        let bytes = text.as_bytes();
        if bytes[start] == b'\''
            && let Some(length) = contraction(&bytes[start + 1..])
        {
            return start + 1 + length;
        }
        // A single blank belongs to the run that follows it, unless that is white space too.
        let head = start + usize::from(bytes[start] == b' ');
        if head < bytes.len() {
            let class = self.class_at(text, head).0;
            if class != Class::Space {
                return self.run_end(text, head, class).0;
            }
        }
        let (end, last) = self.run_end(text, start, Class::Space);
        // `\s+(?!\S)`: before something else, white space gives up its last character (if it has another).
        if end < bytes.len() && last > start { last } else { end }
    }

    /// The last place where `bytes` can be cut so that encoding both parts on their own gives what encoding the
    /// whole gives, whatever comes after; `None` if there is no such place.
    ///
    /// That is in front of white space that follows something else: every piece that holds other characters
    /// ends there, no piece that began earlier can reach past it, and the rule never looks back.
    /// Only blanks and newlines are considered. `bytes` need not be valid UTF-8.
    pub(super) fn last_cut(&self, bytes: &[u8]) -> Option<usize> {
        (1..bytes.len()).rev().find(|&at| {
            matches!(bytes[at], b' ' | b'\n')
                && last_char(&bytes[..at]).is_some_and(|c| self.classes[c as usize] != Class::Space)
        })
    }

    /// The class of the character at byte `at`, and its length in bytes.
    #[inline]
    fn class_at(&self, text: &str, at: usize) -> (Class, usize) {
        let byte = text.as_bytes()[at];
        if byte < 0x80 {
            return (self.classes[usize::from(byte)], 1);
        }
        let c = text[at..].chars().next().unwrap_or_default();
        (self.classes[c as usize], c.len_utf8())
    }

    /// Where the run of `class` that goes through byte `at` ends, and where its last character starts.
    #[inline]
    fn run_end(&self, text: &str, mut at: usize, class: Class) -> (usize, usize) {
        let mut last = at;
        while at < text.len() {
            let (found, length) = self.class_at(text, at);
            if found != class {
                break;
            }
            last = at;
            at += length;
        }
        (at, last)
    }
}

/// The length of the English contraction at the start of what follows an apostrophe.
fn contraction(rest: &[u8]) -> Option<usize> {
    match rest {
        [b's' | b'd' | b'm' | b't', ..] => Some(1),
        [b'l', b'l', ..] | [b'v', b'e', ..] | [b'r', b'e', ..] => Some(2),
        _ => None,
    }
}

/// The last character of `bytes`, if they end in a whole one.
fn last_char(bytes: &[u8]) -> Option<char> {
    let tail = &bytes[bytes.len().saturating_sub(4)..];
    let start = tail.iter().rposition(|byte| byte & 0xC0 != 0x80)?;
    std::str::from_utf8(&tail[start..]).ok()?.chars().next()
}

/// The code points of a character class, as inclusive ranges.
fn ranges(pattern: &str) -> Vec<(char, char)> {
    let hir = regex_syntax::parse(pattern).expect("a fixed pattern");
    match hir.kind() {
        HirKind::Class(HirClass::Unicode(class)) => class.iter().map(|r| (r.start(), r.end())).collect(),
        _ => unreachable!("{pattern} is a class of characters"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(text: &str) -> Vec<&str> {
        let splitter = Splitter::new();
        let mut pieces = Vec::new();
        let mut start = 0;
        while start < text.len() {
            let end = splitter.piece_end(text, start);
            pieces.push(&text[start..end]);
            start = end;
        }
        pieces
    }

    #[test]
    fn pieces_are_those_of_the_rule_worked_by_hand() {
        assert_eq!(pieces("Hello world"), ["Hello", " world"]);
        assert_eq!(pieces("I'll don't 's we'RE"), ["I", "'ll", " don", "'t", " '", "s", " we", "'", "RE"]);
        assert_eq!(pieces("a  b\n\n\nc \n"), ["a", " ", " b", "\n\n", "\n", "c", " \n"]);
        assert_eq!(pieces("x12y 3.5!?"), ["x", "12", "y", " 3", ".", "5", "!?"]);
        assert_eq!(pieces(" "), [" "]);
        assert_eq!(pieces("\u{a0}é ½ 中文。"), ["\u{a0}", "é", " ½", " 中文", "。"]);
    }

    #[test]
    fn cuts_lie_in_front_of_white_space_after_something_else() {
        let splitter = Splitter::new();
        assert_eq!(splitter.last_cut(b"one two  three"), Some(7));
        assert_eq!(splitter.last_cut("文。\n三".as_bytes()), Some("文。".len()));
        assert_eq!(splitter.last_cut(b"one\r\n"), None, "a carriage return stays with its newline");
        assert_eq!(splitter.last_cut(b"\xFF\n"), None, "half a character is not cut off");
        assert_eq!(splitter.last_cut(b"word"), None);
        assert_eq!(splitter.last_cut(b""), None);
    }
}
