//! From text to a tree: first actions are cut out of the text, then each is read token by token.

use serde_json::Value;

use super::eval::FUNCTIONS;

#[derive(Debug, Clone)]
pub(super) enum Node {
    Text(String),
    Print(Pipeline),
    /// The first branch whose condition holds; `None` is `else`.
    If(Vec<(Option<Pipeline>, Vec<Node>)>),
    With(Pipeline, Vec<Node>, Vec<Node>),
    Range {
        key: Option<String>,
        value: Option<String>,
        over: Pipeline,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Assign(String, Pipeline),
}

/// Commands whose result is the last argument of the next.
pub(super) type Pipeline = Vec<Command>;

#[derive(Debug, Clone)]
pub(super) struct Command {
    pub head: Operand,
    pub args: Vec<Operand>,
}

#[derive(Debug, Clone)]
pub(super) enum Operand {
    /// `.A.B`; empty for `.`.
    Field(Vec<String>),
    /// `$x.A`; the empty name is `$`.
    Variable(String, Vec<String>),
    Literal(Value),
    Function(String),
    Group(Pipeline, Vec<String>),
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    /// `.A.B` at the start of an operand or directly behind one.
    Fields(Vec<String>),
    Variable(String),
    Word(String),
    Literal(Value),
    Pipe,
    Open,
    Close,
    Comma,
    /// `:=` or `=`.
    Assign,
}

enum Piece {
    Text(String),
    Action(Vec<Token>),
}

pub(super) fn parse(text: &str) -> Result<Vec<Node>, String> {
    let pieces = cut(text)?;
    let mut parser = Parser { pieces: pieces.into_iter().peekable() };
    let (nodes, end) = parser.block()?;
    match end {
        None => Ok(nodes),
        Some(word) => Err(format!("unexpected `{}`", word.0)),
    }
}

/// Splits text and actions and honours trim markers.
fn cut(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut trim_next = false;
    loop {
        let Some(start) = rest.find("{{") else {
            pieces.push(Piece::Text(if trim_next { rest.trim_start() } else { rest }.to_owned()));
            return Ok(pieces);
        };
        let mut before = &rest[..start];
        if trim_next {
            before = before.trim_start();
        }
        let mut inside = &rest[start + 2..];
        if let Some(trimmed) = inside.strip_prefix("- ").or_else(|| inside.strip_prefix("-\t")) {
            before = before.trim_end();
            inside = trimmed;
        }
        pieces.push(Piece::Text(before.to_owned()));
        if let Some(comment) = inside.trim_start().strip_prefix("/*") {
            let end = comment.find("*/").ok_or("unclosed comment")?;
            inside = &comment[end + 2..];
        }
        let end = action_end(inside)?;
        let mut action = &inside[..end];
        rest = &inside[end + 2..];
        trim_next = action.ends_with(" -");
        if trim_next {
            action = &action[..action.len() - 2];
        }
        let tokens = tokens(action)?;
        if !tokens.is_empty() {
            pieces.push(Piece::Action(tokens));
        }
    }
}

/// Where the action that starts at the beginning of `text` ends: at the first `}}` outside of quotes.
fn action_end(text: &str) -> Result<usize, String> {
    let mut quote = None;
    let mut escaped = false;
    for (i, c) in text.char_indices() {
        match quote {
            Some('"') if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(q) if c == q => quote = None,
            Some(_) => {}
            None if c == '"' || c == '`' => quote = Some(c),
            None if text[i..].starts_with("}}") => return Ok(i),
            None => {}
        }
    }
    Err(if quote.is_some() { "unterminated quoted string".to_owned() } else { "unclosed action".to_owned() })
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut out = Vec::new();
    let mut rest = text.trim_start();
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        let (token, next) = match c {
            '|' => (Token::Pipe, after),
            '(' => (Token::Open, after),
            ')' => (Token::Close, after),
            ',' => (Token::Comma, after),
            '=' => (Token::Assign, after),
            ':' if after.starts_with('=') => (Token::Assign, &after[1..]),
            '"' => quoted(after)?,
            '`' => {
                let end = after.find('`').ok_or("unterminated raw string")?;
                (Token::Literal(after[..end].into()), &after[end + 1..])
            }
            '$' => {
                let end = after.find(|c| !is_name(c)).unwrap_or(after.len());
                (Token::Variable(after[..end].to_owned()), &after[end..])
            }
            '.' => {
                let end = rest.find(|c: char| !is_name(c) && c != '.').unwrap_or(rest.len());
                let names = rest[1..end].split('.').filter(|n| !n.is_empty()).map(str::to_owned).collect();
                (Token::Fields(names), &rest[end..])
            }
            '-' | '+' | '0'..='9' => {
                let end = after.find(|c: char| !c.is_ascii_digit() && c != '.').map_or(rest.len(), |i| i + 1);
                let number: Value = serde_json::from_str(rest[..end].trim_start_matches('+'))
                    .map_err(|_| format!("bad number `{}`", &rest[..end]))?;
                (Token::Literal(number), &rest[end..])
            }
            c if is_name(c) => {
                let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
                let token = match &rest[..end] {
                    "true" => Token::Literal(true.into()),
                    "false" => Token::Literal(false.into()),
                    "nil" => Token::Literal(Value::Null),
                    word => Token::Word(word.to_owned()),
                };
                (token, &rest[end..])
            }
            c => return Err(format!("unexpected `{c}` in action")),
        };
        out.push(token);
        rest = next.trim_start();
    }
    Ok(out)
}

/// A double-quoted string whose opening quote has been read. Go's escapes are close enough to JSON's.
fn quoted(after: &str) -> Result<(Token, &str), String> {
    let mut escaped = false;
    for (i, c) in after.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => {
                let json = format!("\"{}\"", after[..i].replace('\t', "\\t"));
                let value = serde_json::from_str(&json).map_err(|_| format!("bad string {json}"))?;
                return Ok((Token::Literal(value), &after[i + 1..]));
            }
            _ => {}
        }
    }
    Err("unterminated quoted string".to_owned())
}

/// `end`, or `else` with what follows it.
struct Closing(String, Vec<Token>);

struct Parser {
    pieces: std::iter::Peekable<std::vec::IntoIter<Piece>>,
}

impl Parser {
    /// Nodes up to an `end` or `else` that belongs to the enclosing action, or to the end of the text.
    fn block(&mut self) -> Result<(Vec<Node>, Option<Closing>), String> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            match piece {
                Piece::Text(text) if text.is_empty() => {}
                Piece::Text(text) => nodes.push(Node::Text(text)),
                Piece::Action(tokens) => {
                    let keyword = match &tokens[0] {
                        Token::Word(word) => word.clone(),
                        _ => String::new(),
                    };
                    match keyword.as_str() {
                        "end" | "else" => return Ok((nodes, Some(Closing(keyword, tokens[1..].to_vec())))),
                        "if" => nodes.push(self.conditional(&tokens[1..])?),
                        "with" => {
                            let over = pipeline(&tokens[1..])?;
                            let (body, otherwise) = self.body_and_else("with")?;
                            nodes.push(Node::With(over, body, otherwise));
                        }
                        "range" => nodes.push(self.range(&tokens[1..])?),
                        "define" | "template" | "block" | "break" | "continue" => {
                            return Err(format!("`{keyword}` is not supported"));
                        }
                        _ => nodes.push(match tokens.as_slice() {
                            [Token::Variable(name), Token::Assign, rest @ ..] => {
                                Node::Assign(name.clone(), pipeline(rest)?)
                            }
                            _ => Node::Print(pipeline(&tokens)?),
                        }),
                    }
                }
            }
        }
        Ok((nodes, None))
    }

    fn conditional(&mut self, condition: &[Token]) -> Result<Node, String> {
        let mut branches = Vec::new();
        let mut condition = Some(pipeline(condition)?);
        loop {
            let (body, closing) = self.block()?;
            let last = condition.is_none();
            branches.push((condition.take(), body));
            match closing {
                Some(Closing(word, _)) if word == "end" => return Ok(Node::If(branches)),
                Some(Closing(_, rest)) if !last => match rest.as_slice() {
                    [] => {}
                    [Token::Word(word), rest @ ..] if word == "if" => condition = Some(pipeline(rest)?),
                    _ => return Err("expected `if` or nothing after `else`".to_owned()),
                },
                Some(_) => return Err("`else` after `else`".to_owned()),
                None => return Err("`if` without `end`".to_owned()),
            }
        }
    }

    fn range(&mut self, tokens: &[Token]) -> Result<Node, String> {
        let (key, value, over) = match tokens {
            [Token::Variable(k), Token::Comma, Token::Variable(v), Token::Assign, rest @ ..] => {
                (Some(k.clone()), Some(v.clone()), rest)
            }
            [Token::Variable(v), Token::Assign, rest @ ..] => (None, Some(v.clone()), rest),
            rest => (None, None, rest),
        };
        let over = pipeline(over)?;
        let (body, otherwise) = self.body_and_else("range")?;
        Ok(Node::Range { key, value, over, body, otherwise })
    }

    fn body_and_else(&mut self, what: &str) -> Result<(Vec<Node>, Vec<Node>), String> {
        let (body, closing) = self.block()?;
        match closing {
            Some(Closing(word, _)) if word == "end" => Ok((body, Vec::new())),
            Some(_) => match self.block()? {
                (otherwise, Some(Closing(word, _))) if word == "end" => Ok((body, otherwise)),
                _ => Err(format!("`{what}` without `end`")),
            },
            None => Err(format!("`{what}` without `end`")),
        }
    }
}

fn pipeline(tokens: &[Token]) -> Result<Pipeline, String> {
    let mut rest = tokens;
    let pipeline = pipeline_until_close(&mut rest)?;
    if rest.is_empty() { Ok(pipeline) } else { Err("unexpected `)`".to_owned()) }
}

/// Reads commands up to an unmatched `)` or the end; leaves the `)` in `rest`.
fn pipeline_until_close(rest: &mut &[Token]) -> Result<Pipeline, String> {
    let mut commands = Vec::new();
    loop {
        let mut operands = Vec::new();
        while let Some(operand) = operand(rest)? {
            operands.push(operand);
        }
        if operands.is_empty() {
            return Err("missing value for command".to_owned());
        }
        let head = operands.remove(0);
        commands.push(Command { head, args: operands });
        match rest.first() {
            Some(Token::Pipe) => *rest = &rest[1..],
            Some(Token::Close) | None => return Ok(commands),
            Some(_) => return Err("unexpected token in action".to_owned()),
        }
    }
}

fn operand(rest: &mut &[Token]) -> Result<Option<Operand>, String> {
    let Some(first) = rest.first() else { return Ok(None) };
    let operand = match first {
        Token::Fields(names) => Operand::Field(names.clone()),
        Token::Literal(value) => Operand::Literal(value.clone()),
        Token::Word(name) if FUNCTIONS.contains(&name.as_str()) => Operand::Function(name.clone()),
        Token::Word(name) => return Err(format!("function \"{name}\" not defined")),
        Token::Variable(name) => {
            let chain = chain(&mut &rest[1..]);
            *rest = &rest[1 + usize::from(!chain.is_empty())..];
            return Ok(Some(Operand::Variable(name.clone(), chain)));
        }
        Token::Open => {
            *rest = &rest[1..];
            let inner = pipeline_until_close(rest)?;
            if rest.first() != Some(&Token::Close) {
                return Err("unclosed `(`".to_owned());
            }
            let chain = chain(&mut &rest[1..]);
            *rest = &rest[1 + usize::from(!chain.is_empty())..];
            return Ok(Some(Operand::Group(inner, chain)));
        }
        Token::Pipe | Token::Close | Token::Comma | Token::Assign => return Ok(None),
    };
    *rest = &rest[1..];
    Ok(Some(operand))
}

/// The fields directly behind a variable or a group.
fn chain(rest: &mut &[Token]) -> Vec<String> {
    match rest.first() {
        Some(Token::Fields(names)) => names.clone(),
        _ => Vec::new(),
    }
}
