//! From a template's text to its parts, by the grammar of Kubernetes' own parser, quirks included.

use super::{Op, Part, Slice, Step};
use serde_json::Value;

/// Filters in filters, and ranges in ranges.
const DEEPEST: usize = 32;

/// What stands in an action.
enum Word {
    Step(Step),
    Range,
    End,
}

/// Parses a whole template.
pub fn template(text: &str) -> Result<Vec<Part>, String> {
    let mut cursor = Cursor { chars: text.chars().collect(), at: 0 };
    // The innermost open range is last; the template itself is first.
    let mut open: Vec<(Vec<Step>, Vec<Part>)> = vec![(Vec::new(), Vec::new())];
    while !cursor.is_done() {
        let plain = cursor.take_until(|c| c == '{');
        if !plain.is_empty() {
            put(&mut open, Part::Text(plain));
        }
        if !cursor.eat("{") {
            continue;
        }
        let words = action(&mut cursor, 0)?;
        if words.iter().any(|word| matches!(word, Word::End)) {
            close(&mut open)?;
            continue;
        }
        let begins = words.iter().any(|word| matches!(word, Word::Range));
        let steps = steps(words);
        if !begins {
            put(&mut open, Part::Path(steps));
        } else if open.len() > DEEPEST {
            return Err("ranges nest too deep".to_owned());
        } else {
            open.push((steps, Vec::new()));
        }
    }
    // A range that nobody ended goes on to the end of the template.
    while open.len() > 1 {
        close(&mut open)?;
    }
    Ok(open.pop().map(|(_, parts)| parts).unwrap_or_default())
}

fn put(open: &mut [(Vec<Step>, Vec<Part>)], part: Part) {
    if let Some((_, parts)) = open.last_mut() {
        parts.push(part);
    }
}

fn close(open: &mut Vec<(Vec<Step>, Vec<Part>)>) -> Result<(), String> {
    if open.len() < 2 {
        return Err("not in range, nothing to end".to_owned());
    }
    if let Some((steps, parts)) = open.pop() {
        put(open, Part::Range(steps, parts));
    }
    Ok(())
}

fn steps(words: Vec<Word>) -> Vec<Step> {
    let step = |word| if let Word::Step(step) = word { Some(step) } else { None };
    words.into_iter().filter_map(step).collect()
}

/// The steps of a path that stands inside another one.
fn path(text: &str, depth: usize) -> Result<Vec<Step>, String> {
    if depth > DEEPEST {
        return Err("filters nest too deep".to_owned());
    }
    let mut cursor = Cursor { chars: text.chars().chain(['}']).collect(), at: 0 };
    action(&mut cursor, depth).map(steps)
}

/// What stands between braces; the left one is behind us.
fn action(cursor: &mut Cursor, depth: usize) -> Result<Vec<Word>, String> {
    let mut words = Vec::new();
    loop {
        if cursor.eat("}") {
            return Ok(words);
        }
        if cursor.eat("[?(") {
            words.push(Word::Step(filter(cursor, depth)?));
            continue;
        }
        if cursor.eat("..") {
            if matches!(words.last(), Some(Word::Step(Step::Recursive))) {
                return Err("invalid multiple recursive descent".to_owned());
            }
            words.push(Word::Step(Step::Recursive));
            if cursor.peek().is_some_and(is_word) {
                words.push(Word::Step(field(cursor)));
            }
            continue;
        }
        match cursor.next() {
            None | Some('\r' | '\n') => return Err("unclosed action".to_owned()),
            Some(' ' | '@' | '$') => {}
            Some('[') => words.extend(array(cursor, depth)?.into_iter().map(Word::Step)),
            Some(quote @ ('"' | '\'')) => words.push(Word::Step(Step::Literal(quoted(cursor, quote)?.into()))),
            Some('.') => words.push(Word::Step(field(cursor))),
            Some(first) if first == '+' || first == '-' || first.is_ascii_digit() => {
                words.push(Word::Step(number(cursor, first)?))
            }
            Some(first) if is_word(first) => words.push(identifier(cursor, first)?),
            Some(other) => {
                return Err(format!("unrecognized character in action: U+{:04X} '{other}'", u32::from(other)));
            }
        }
    }
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// True for what may follow a name.
fn is_terminator(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n' | '.' | ',' | '[' | ']' | '$' | '@' | '{' | '}')
}

fn field(cursor: &mut Cursor) -> Step {
    let mut name = String::new();
    while let Some(c) = cursor.peek().filter(|&c| !is_terminator(c)) {
        cursor.next();
        if c != '\\' {
            name.push(c);
        } else if let Some(escaped) = cursor.next() {
            name.push(escaped);
        }
    }
    if name == "*" { Step::Wildcard } else { Step::Field(name) }
}

fn identifier(cursor: &mut Cursor, first: char) -> Result<Word, String> {
    let name = format!("{first}{}", cursor.take_until(is_terminator));
    match name.as_str() {
        "true" | "false" => Ok(Word::Step(Step::Literal((name == "true").into()))),
        "range" => Ok(Word::Range),
        "end" => Ok(Word::End),
        _ => Err(format!("unrecognized identifier {name}")),
    }
}

fn number(cursor: &mut Cursor, first: char) -> Result<Step, String> {
    let text = format!("{first}{}", cursor.take_until(|c| c != '.' && !c.is_ascii_digit()));
    if let Ok(number) = text.parse::<i64>() {
        return Ok(Step::Literal(number.into()));
    }
    let number = text.parse::<f64>().ok().and_then(serde_json::Number::from_f64);
    number.map(|number| Step::Literal(Value::Number(number))).ok_or_else(|| format!("cannot parse number {text}"))
}

fn array(cursor: &mut Cursor, depth: usize) -> Result<Vec<Step>, String> {
    let text = cursor.take_until(|c| c == ']' || c == '\n');
    if !cursor.eat("]") {
        return Err("unterminated array".to_owned());
    }
    if text.contains(',') {
        let parts = text.split(',').map(|part| path(&format!("[{}]", part.trim_matches(' ')), depth + 1));
        return Ok(vec![Step::Union(parts.collect::<Result<_, _>>()?)]);
    }
    if let Some(key) =
        text.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')).filter(|key| !key.contains('\''))
    {
        return path(&format!(".{key}"), depth + 1);
    }
    slice(if text == "*" { ":" } else { &text }).map(|slice| vec![Step::Slice(slice)])
}

fn slice(text: &str) -> Result<Slice, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let digits = |part: &&str| part.strip_prefix('-').unwrap_or(part).chars().all(|c| c.is_ascii_digit());
    if parts.len() > 3 || !parts.iter().all(digits) {
        return Err(format!("invalid array index {text}"));
    }
    let at = |index: usize| match parts.get(index) {
        None | Some(&"") => Ok(None),
        Some(part) => part.parse::<i64>().map(Some).map_err(|_| format!("array index {part} is not a number")),
    };
    Ok(Slice { from: at(0)?, to: at(1)?, step: at(2)?, single: parts.len() == 1 })
}

fn filter(cursor: &mut Cursor, depth: usize) -> Result<Step, String> {
    let (mut text, mut quote, mut ended) = (String::new(), None, false);
    loop {
        match cursor.next() {
            None | Some('\n') => return Err("unterminated filter".to_owned()),
            Some(c @ ('"' | '\'')) => {
                match quote {
                    None => quote = Some(c),
                    Some(open) if open == c && !text.ends_with('\\') => ended = true,
                    Some(_) => {}
                }
                text.push(c);
            }
            Some(')') if quote.is_some() == ended => break,
            Some(c) => text.push(c),
        }
    }
    if !cursor.eat("]") {
        return Err("unclosed array expect ]".to_owned());
    }
    let is_operator = |c: char| matches!(c, '!' | '<' | '>' | '=');
    let compared = text.find(is_operator).filter(|&at| at > 0).and_then(|at| {
        let (left, rest) = text.split_at(at);
        let right = rest.trim_start_matches(is_operator);
        (!right.is_empty()).then(|| (left, &rest[..rest.len() - right.len()], right))
    });
    let Some((left, operator, right)) = compared else { return Ok(Step::Filter(path(&text, depth + 1)?, None)) };
    let operator = match operator {
        "<" => Op::Less,
        "<=" => Op::LessOrEqual,
        "==" => Op::Equal,
        "!=" => Op::NotEqual,
        ">=" => Op::GreaterOrEqual,
        ">" => Op::Greater,
        other => return Err(format!("unrecognized filter operator {other}")),
    };
    Ok(Step::Filter(path(left, depth + 1)?, Some((operator, path(right, depth + 1)?))))
}

/// A quoted text with Go's escapes; the opening quote is behind us.
fn quoted(cursor: &mut Cursor, quote: char) -> Result<String, String> {
    let mut text = String::new();
    loop {
        match cursor.next() {
            None | Some('\n') => return Err("unterminated quoted string".to_owned()),
            Some(c) if c == quote => return Ok(text),
            Some('\\') => text.push(escape(cursor)?),
            Some(c) => text.push(c),
        }
    }
}

fn escape(cursor: &mut Cursor) -> Result<char, String> {
    Ok(match cursor.next() {
        Some('a') => '\u{7}',
        Some('b') => '\u{8}',
        Some('f') => '\u{c}',
        Some('n') => '\n',
        Some('r') => '\r',
        Some('t') => '\t',
        Some('v') => '\u{b}',
        Some(same @ ('\\' | '\'' | '"')) => same,
        Some('x') => return hex(cursor, 2),
        Some('u') => return hex(cursor, 4),
        Some('U') => return hex(cursor, 8),
        _ => return Err("unquote string error invalid syntax".to_owned()),
    })
}

fn hex(cursor: &mut Cursor, digits: usize) -> Result<char, String> {
    let text: String = (0..digits).filter_map(|_| cursor.next()).collect();
    let code = u32::from_str_radix(&text, 16).ok().filter(|_| text.len() == digits);
    code.and_then(char::from_u32).ok_or_else(|| "unquote string error invalid syntax".to_owned())
}

/// A place in a text.
struct Cursor {
    chars: Vec<char>,
    at: usize,
}

impl Cursor {
    fn is_done(&self) -> bool {
        self.at >= self.chars.len()
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += 1;
        Some(c)
    }

    /// Passes a text if it is next.
    fn eat(&mut self, text: &str) -> bool {
        let is_next = text.chars().enumerate().all(|(index, c)| self.chars.get(self.at + index) == Some(&c));
        if is_next {
            self.at += text.chars().count();
        }
        is_next
    }

    /// What comes before the first character that ends it, which stays.
    fn take_until(&mut self, ends: impl Fn(char) -> bool) -> String {
        let rest = &self.chars[self.at.min(self.chars.len())..];
        let text: String = rest.iter().take_while(|&&c| !ends(c)).collect();
        self.at += text.chars().count();
        text
    }
}
