//! The surface of PTX: comments, statements, scopes, operands. Nothing here knows what an instruction means.

/// A reader of the text that counts lines.
pub(super) struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    /// The line it is in, from 1.
    pub(super) line: u32,
}

/// A piece of a function's body.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Piece {
    /// `{`
    Open,
    /// `}`
    Close,
    /// `name:`
    Label(String),
    /// Anything that ends in a semicolon, without it.
    Statement(String, u32),
}

fn named(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'.' | b'%')
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str) -> Reader<'a> {
        Reader { text: text.as_bytes(), at: 0, line: 1 }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let c = self.peek()?;
        self.at += 1;
        if c == b'\n' {
            self.line += 1;
        }
        Some(c)
    }

    /// Over white space and comments.
    pub(super) fn skip(&mut self) {
        loop {
            match self.peek() {
                Some(c) if c.is_ascii_whitespace() || c == 0 => {
                    self.next();
                }
                Some(b'/') if self.text.get(self.at + 1) == Some(&b'/') => self.skip_line(),
                Some(b'/') if self.text.get(self.at + 1) == Some(&b'*') => {
                    self.next();
                    self.next();
                    while let Some(c) = self.next() {
                        if c == b'*' && self.peek() == Some(b'/') {
                            self.next();
                            break;
                        }
                    }
                }
                _ => return,
            }
        }
    }

    pub(super) fn skip_line(&mut self) {
        while let Some(c) = self.next() {
            if c == b'\n' {
                return;
            }
        }
    }

    pub(super) fn at_end(&mut self) -> bool {
        self.skip();
        self.peek().is_none()
    }

    /// The word ahead, without taking it.
    pub(super) fn word(&mut self) -> &'a str {
        self.skip();
        let length = self.text[self.at..].iter().take_while(|c| named(**c)).count();
        std::str::from_utf8(&self.text[self.at..self.at + length]).unwrap_or("")
    }

    /// Everything up to one of `stops` outside of parentheses, comments as spaces; the stop is taken too. With
    /// `braces`, what stands in braces is passed over.
    pub(super) fn until(&mut self, stops: &[u8], braces: bool) -> Result<(String, u8), String> {
        let (mut taken, mut depth) = (Vec::new(), 0i32);
        let from = self.line;
        loop {
            let before = self.at;
            if self.peek() == Some(b'/') {
                self.skip();
                if self.at != before {
                    taken.push(b' ');
                    continue;
                }
            }
            let c = self.next().ok_or_else(|| format!("line {from}: the text ends within a statement"))?;
            if depth == 0 && stops.contains(&c) {
                return Ok((String::from_utf8_lossy(&taken).trim().to_string(), c));
            }
            match c {
                b'(' | b'[' => depth += 1,
                b')' | b']' => depth -= 1,
                b'{' if braces => depth += 1,
                b'}' if braces => depth -= 1,
                b'"' => {
                    taken.push(c);
                    while let Some(c) = self.next() {
                        taken.push(c);
                        if c == b'"' {
                            break;
                        }
                    }
                    continue;
                }
                _ => {}
            }
            taken.push(c);
        }
    }

    /// Over a `{ .. }` whose brace was taken.
    pub(super) fn skip_braces(&mut self) {
        let mut depth = 1;
        while depth > 0 {
            match self.next() {
                Some(b'{') => depth += 1,
                Some(b'}') => depth -= 1,
                Some(_) => {}
                None => return,
            }
        }
    }

    /// The next piece of a body.
    pub(super) fn piece(&mut self) -> Result<Piece, String> {
        loop {
            self.skip();
            match self.peek() {
                None => return Err("the text ends within a function".into()),
                Some(b'{') => {
                    self.next();
                    return Ok(Piece::Open);
                }
                Some(b'}') => {
                    self.next();
                    return Ok(Piece::Close);
                }
                Some(b';') => {
                    self.next();
                    continue;
                }
                _ => {}
            }
            let word = self.word();
            if matches!(word, ".loc" | ".file") {
                self.skip_line();
                continue;
            }
            if !word.is_empty() && !word.starts_with('.') {
                let mut after = self.at + word.len();
                while self.text.get(after).is_some_and(|c| matches!(c, b' ' | b'\t')) {
                    after += 1;
                }
                if self.text.get(after) == Some(&b':') && self.text.get(after + 1) != Some(&b':') {
                    self.at = after + 1;
                    return Ok(Piece::Label(word.to_string()));
                }
            }
            let line = self.line;
            let (statement, _) = self.until(b";", true)?;
            return Ok(Piece::Statement(statement, line));
        }
    }
}

/// An operand as it is written.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    /// A register, a special register, a variable or a label; and how far behind it.
    Name(String, i64),
    /// A whole number.
    Integer(i128),
    /// A floating-point number, by its value; those written as 32 bits are exact in 64.
    Float(f64),
    /// `!p`
    Not(String),
    /// `d|p`
    Pair(Box<Operand>, Box<Operand>),
    /// `{a, b}`
    Vector(Vec<Operand>),
    /// `[base+offset]` or `[base, {..}, ..]`
    Address(Box<Operand>, i64, Vec<Operand>),
    /// `_`
    Sink,
}

/// Splits at commas that are in no bracket.
pub(super) fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut from) = (Vec::new(), 0i32, 0);
    for (i, c) in text.char_indices() {
        match c {
            '{' | '[' | '(' => depth += 1,
            '}' | ']' | ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[from..i].trim());
                from = i + 1;
            }
            _ => {}
        }
    }
    if !text[from..].trim().is_empty() {
        parts.push(text[from..].trim());
    }
    parts
}

/// A whole number as PTX writes it.
pub(super) fn integer(text: &str) -> Option<i128> {
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest.trim()),
        None => (false, text),
    };
    let text = text.trim_end_matches(['U', 'u', 'L', 'l']);
    let value = if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        i128::from(u64::from_str_radix(hex, 16).ok()?)
    } else if let Some(binary) = text.strip_prefix("0b") {
        i128::from(u64::from_str_radix(binary, 2).ok()?)
    } else if text.len() > 1 && text.starts_with('0') && text.bytes().all(|c| c.is_ascii_digit()) {
        i128::from(u64::from_str_radix(text, 8).ok()?)
    } else {
        i128::from(text.parse::<u64>().ok()?)
    };
    Some(if negative { -value } else { value })
}

impl Operand {
    /// Reads one.
    pub fn parse(text: &str) -> Result<Operand, String> {
        let text = text.trim();
        let wrong = || format!("what is the operand `{text}`?");
        if text == "_" {
            return Ok(Operand::Sink);
        }
        if let Some(inner) = text.strip_prefix('{') {
            let inner = inner.strip_suffix('}').ok_or_else(wrong)?;
            return Ok(Operand::Vector(
                split(inner).into_iter().map(Operand::parse).collect::<Result<_, _>>()?,
            ));
        }
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or_else(wrong)?;
            let parts = split(inner);
            let (base, offset) = match Operand::parse(parts.first().ok_or_else(wrong)?)? {
                Operand::Name(name, offset) => (Operand::Name(name, 0), offset),
                Operand::Integer(value) => (Operand::Integer(value), 0),
                _ => return Err(wrong()),
            };
            let rest = parts[1..].iter().map(|part| Operand::parse(part)).collect::<Result<_, _>>()?;
            return Ok(Operand::Address(Box::new(base), offset, rest));
        }
        if let Some(bar) = text.find('|') {
            return Ok(Operand::Pair(
                Box::new(Operand::parse(&text[..bar])?),
                Box::new(Operand::parse(&text[bar + 1..])?),
            ));
        }
        if let Some(name) = text.strip_prefix('!') {
            return Ok(Operand::Not(name.trim().to_string()));
        }
        let first = text.bytes().next().ok_or_else(wrong)?;
        if first.is_ascii_digit() || first == b'-' || first == b'+' {
            let bits = |prefix: &str| text.strip_prefix(prefix).map(|hex| u64::from_str_radix(hex, 16));
            if let Some(bits) = bits("0f").or_else(|| bits("0F")) {
                let bits = u32::try_from(bits.map_err(|_| wrong())?).map_err(|_| wrong())?;
                return Ok(Operand::Float(widen(bits)));
            }
            if let Some(bits) = bits("0d").or_else(|| bits("0D")) {
                return Ok(Operand::Float(f64::from_bits(bits.map_err(|_| wrong())?)));
            }
            return match integer(text) {
                Some(value) => Ok(Operand::Integer(value)),
                None => text.parse().map(Operand::Float).map_err(|_| wrong()),
            };
        }
        // name, name+4, name+-4, name-4
        let end = text.bytes().position(|c| !named(c)).unwrap_or(text.len());
        let (name, rest) = (&text[..end], text[end..].trim());
        let offset = match rest.bytes().next() {
            None => 0,
            Some(b'+') => integer(rest[1..].trim()).ok_or_else(wrong)?,
            Some(b'-') => integer(rest).ok_or_else(wrong)?,
            Some(_) => return Err(wrong()),
        };
        Ok(Operand::Name(name.to_string(), i64::try_from(offset).map_err(|_| wrong())?))
    }
}

/// A 32-bit float as 64 bits that [`narrow`] makes the same bits of, whatever not-a-number it is.
fn widen(bits: u32) -> f64 {
    let value = f32::from_bits(bits);
    if value.is_nan() {
        let sign = u64::from(bits >> 31) << 63;
        f64::from_bits(sign | 0x7ff << 52 | u64::from(bits & 0x7f_ffff) << 29)
    } else {
        f64::from(value)
    }
}

/// The other way.
pub(super) fn narrow(value: f64) -> u32 {
    if value.is_nan() {
        let bits = value.to_bits();
        ((bits >> 63) as u32) << 31 | 0x7f80_0000 | (bits >> 29) as u32 & 0x7f_ffff
    } else {
        (value as f32).to_bits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_are_read_as_ptx_writes_them() {
        let read = |text: &str| Operand::parse(text).unwrap();
        assert_eq!(read("%r1"), Operand::Name("%r1".into(), 0));
        assert_eq!(
            read("[%rd4+-16]"),
            Operand::Address(Box::new(Operand::Name("%rd4".into(), 0)), -16, vec![])
        );
        assert_eq!(read("0f3F800000"), Operand::Float(1.0));
        assert_eq!(read("0dBFF8000000000000"), Operand::Float(-1.5));
        assert_eq!(read("-7"), Operand::Integer(-7));
        assert_eq!(read("0xFFFFFFFFFFFFFFFF"), Operand::Integer(i128::from(u64::MAX)));
        assert_eq!(read("010"), Operand::Integer(8));
        assert_eq!(
            read("[%rd1, {%r2, 3}]"),
            Operand::Address(
                Box::new(Operand::Name("%rd1".into(), 0)),
                0,
                vec![Operand::Vector(vec![Operand::Name("%r2".into(), 0), Operand::Integer(3)])]
            )
        );
        assert_eq!(narrow(widen(0xffc0_1234)), 0xffc0_1234);
        assert!(Operand::parse("[%rd1").is_err());
        assert!(Operand::parse("%r1 %r2").is_err());
    }

    #[test]
    fn pieces_are_labels_scopes_and_statements() {
        let text = "$L1:\n// x\n.loc 1 2 3\n{ .reg .pred p; /* ; */ mov.b32 {%r1, %r2}, %rd1; }\n}";
        let mut reader = Reader::new(text);
        let mut pieces = Vec::new();
        while !reader.at_end() {
            pieces.push(reader.piece().unwrap());
        }
        assert_eq!(
            pieces,
            [
                Piece::Label("$L1".into()),
                Piece::Open,
                Piece::Statement(".reg .pred p".into(), 4),
                Piece::Statement("mov.b32 {%r1, %r2}, %rd1".into(), 4),
                Piece::Close,
                Piece::Close,
            ]
        );
    }
}
