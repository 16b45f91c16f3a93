//! Owns the tokens of an expression (cel-spec, lexis).

use super::Issue;

/// A token.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Ident(String),
    Int(u64),
    Uint(u64),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
    Sign(&'static str),
    End,
}

impl Token {
    /// As messages name it.
    pub(super) fn shown(&self) -> String {
        match self {
            Token::Ident(name) => name.clone(),
            Token::Int(n) => n.to_string(),
            Token::Uint(n) => format!("{n}u"),
            Token::Double(n) => n.to_string(),
            Token::Text(text) => format!("{text:?}"),
            Token::Bytes(_) => "b\"…\"".to_owned(),
            Token::Sign(sign) => (*sign).to_owned(),
            Token::End => "<EOF>".to_owned(),
        }
    }
}

const SIGNS: [&str; 25] = [
    "&&", "||", "==", "!=", "<=", ">=", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", ".", ",", "(", ")", "[", "]",
    "{", "}", "`",
];

/// The tokens of a text, each with its place, [`Token::End`] last.
pub(super) fn tokens(text: &str) -> Result<Vec<(usize, Token)>, Issue> {
    let mut lexer = Lexer { text, at: 0 };
    let mut tokens = Vec::new();
    loop {
        lexer.skip_blanks();
        let at = lexer.at;
        let token = lexer.next()?;
        let end = token == Token::End;
        tokens.push((at, token));
        if end {
            return Ok(tokens);
        }
    }
}

struct Lexer<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Lexer<'t> {
    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn issue(&self, message: impl Into<String>) -> Issue {
        Issue { at: self.at, message: format!("Syntax error: {}", message.into()) }
    }

    fn skip_blanks(&mut self) {
        loop {
            let rest = self.rest();
            let blank = rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r', '\u{c}']).len();
            self.at += blank;
            if !self.rest().starts_with("//") {
                return;
            }
            self.at += self.rest().find('\n').unwrap_or(self.rest().len());
        }
    }

    fn next(&mut self) -> Result<Token, Issue> {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Ok(Token::End) };
        if first.is_ascii_digit() || (first == '.' && rest[1..].starts_with(|c: char| c.is_ascii_digit())) {
            return self.number();
        }
        if let Some((raw, bytes, quote)) = string_start(rest) {
            return self.string(raw, bytes, quote);
        }
        if first == '_' || first.is_ascii_alphabetic() {
            let end = rest.find(|c: char| c != '_' && !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
            self.at += end;
            return Ok(Token::Ident(rest[..end].to_owned()));
        }
        let sign = SIGNS.into_iter().find(|sign| rest.starts_with(sign));
        let sign = sign.ok_or_else(|| self.issue(format!("token recognition error at: '{first}'")))?;
        if sign == "`" {
            // A field whose name is no identifier.
            let end = rest[1..].find('`').ok_or_else(|| self.issue("token recognition error at: '`'"))?;
            self.at += end + 2;
            return Ok(Token::Ident(rest[1..=end].to_owned()));
        }
        self.at += sign.len();
        Ok(Token::Sign(sign))
    }

    fn number(&mut self) -> Result<Token, Issue> {
        let rest = self.rest();
        if let Some(hex) = rest.strip_prefix("0x").or_else(|| rest.strip_prefix("0X")) {
            let end = hex.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(hex.len());
            let value = u64::from_str_radix(&hex[..end], 16).map_err(|_| self.issue("invalid int literal"))?;
            return Ok(self.whole(2 + end, value));
        }
        let digits = |from: usize| rest[from..].find(|c: char| !c.is_ascii_digit()).map_or(rest.len(), |n| from + n);
        let mut end = digits(0);
        let mut double = false;
        if rest[end..].starts_with('.') && rest[end + 1..].starts_with(|c: char| c.is_ascii_digit()) {
            end = digits(end + 1);
            double = true;
        }
        if let Some(exponent) = rest[end..].strip_prefix(['e', 'E']) {
            let sign = usize::from(exponent.starts_with(['+', '-']));
            if exponent[sign..].starts_with(|c: char| c.is_ascii_digit()) {
                end = digits(end + 1 + sign);
                double = true;
            }
        }
        if double {
            let value = rest[..end].parse().map_err(|_| self.issue("invalid double literal"))?;
            self.at += end;
            return Ok(Token::Double(value));
        }
        let value = rest[..end].parse().map_err(|_| self.issue("invalid int literal"))?;
        Ok(self.whole(end, value))
    }

    fn whole(&mut self, length: usize, value: u64) -> Token {
        self.at += length;
        if self.rest().starts_with(['u', 'U']) {
            self.at += 1;
            return Token::Uint(value);
        }
        Token::Int(value)
    }

    fn string(&mut self, raw: bool, bytes: bool, quote: &'static str) -> Result<Token, Issue> {
        let begun = self.at;
        self.at += usize::from(raw) + usize::from(bytes) + quote.len();
        let unended = || Issue {
            at: begun,
            message: format!("Syntax error: token recognition error at: '{}'", &self.text[begun..]),
        };
        let mut made = Vec::new();
        loop {
            let rest = &self.text[self.at..];
            if rest.starts_with(quote) {
                self.at += quote.len();
                break;
            }
            let next = rest.chars().next().ok_or_else(unended)?;
            if quote.len() == 1 && matches!(next, '\n' | '\r') {
                return Err(unended());
            }
            if next == '\\' && !raw {
                let used = escape(&rest[1..], bytes, &mut made)
                    .ok_or_else(|| Issue { at: self.at, message: "Syntax error: invalid escape sequence".into() })?;
                self.at += 1 + used;
            } else {
                made.extend_from_slice(&rest.as_bytes()[..next.len_utf8()]);
                self.at += next.len_utf8();
            }
        }
        if bytes {
            return Ok(Token::Bytes(made));
        }
        let invalid = |_| Issue { at: begun, message: "Syntax error: invalid string literal".into() };
        String::from_utf8(made).map(Token::Text).map_err(invalid)
    }
}

/// Whether a string begins here: raw, of bytes, and its quotes.
fn string_start(rest: &str) -> Option<(bool, bool, &'static str)> {
    for (prefix, raw, bytes) in [("", false, false), ("r", true, false), ("b", false, true), ("rb", true, true)] {
        let Some(head) = rest.get(..prefix.len()) else { continue };
        let swapped = prefix == "rb" && head.eq_ignore_ascii_case("br");
        if !head.eq_ignore_ascii_case(prefix) && !swapped {
            continue;
        }
        let quotes = ["\"\"\"", "'''", "\"", "'"];
        if let Some(quote) = quotes.into_iter().find(|quote| rest[prefix.len()..].starts_with(quote)) {
            return Some((raw, bytes, quote));
        }
    }
    None
}

/// What follows a backslash: appended to `made`; how many bytes it took.
fn escape(rest: &str, bytes: bool, made: &mut Vec<u8>) -> Option<usize> {
    let first = rest.chars().next()?;
    let plain = match first {
        'a' => Some(7),
        'b' => Some(8),
        'f' => Some(12),
        'n' => Some(b'\n'),
        'r' => Some(b'\r'),
        't' => Some(b'\t'),
        'v' => Some(11),
        '\\' | '\'' | '"' | '`' | '?' => u8::try_from(first).ok(),
        _ => None,
    };
    if let Some(byte) = plain {
        made.push(byte);
        return Some(1);
    }
    let (skip, digits, radix) = match first {
        'x' | 'X' => (1, 2, 16),
        'u' if !bytes => (1, 4, 16),
        'U' if !bytes => (1, 8, 16),
        '0'..='3' => (0, 3, 8),
        _ => return None,
    };
    let code = u32::from_str_radix(rest.get(skip..skip + digits)?, radix).ok()?;
    if bytes {
        made.push(u8::try_from(code).ok()?);
    } else {
        made.extend_from_slice(char::from_u32(code)?.encode_utf8(&mut [0; 4]).as_bytes());
    }
    Some(skip + digits)
}
