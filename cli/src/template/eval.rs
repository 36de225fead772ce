//! Carrying a parsed template out.

use std::iter::Peekable;
use std::str::Chars;

use serde_json::Value;

use super::Blank;
use super::parse::{Command, Node, Operand, Pipeline};

pub(super) const FUNCTIONS: &[&str] = &[
    "and", "or", "not", "eq", "ne", "lt", "le", "gt", "ge", "len", "index", "print", "println", "printf",
    "json", "split", "join", "title", "lower", "upper", "pad", "truncate",
];

/// `root`: the value whose fields must exist, if any must.
pub(super) fn render(
    nodes: &[Node],
    dot: &Value,
    root: Option<&Value>,
    blank: Blank,
) -> Result<String, String> {
    let mut scope = Scope { root, blank, variables: vec![(String::new(), dot.clone())], out: String::new() };
    scope.nodes(nodes, dot)?;
    Ok(scope.out)
}

struct Scope<'a> {
    root: Option<&'a Value>,
    blank: Blank,
    variables: Vec<(String, Value)>,
    out: String,
}

impl Scope<'_> {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<(), String> {
        let depth = self.variables.len();
        for node in nodes {
            self.node(node, dot)?;
        }
        self.variables.truncate(depth);
        Ok(())
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<(), String> {
        match node {
            Node::Text(text) => self.out.push_str(text),
            Node::Print(pipeline) => {
                let value = self.pipeline(pipeline, dot)?;
                self.out.push_str(&display(&value));
            }
            Node::Assign(name, pipeline) => {
                let value = self.pipeline(pipeline, dot)?;
                match self.variables.iter_mut().rev().find(|(known, _)| known == name) {
                    Some((_, old)) => *old = value,
                    None => self.variables.push((name.clone(), value)),
                }
            }
            Node::If(branches) => {
                for (condition, body) in branches {
                    let holds = match condition {
                        Some(pipeline) => truthy(&self.pipeline(pipeline, dot)?),
                        None => true,
                    };
                    if holds {
                        return self.nodes(body, dot);
                    }
                }
            }
            Node::With(pipeline, body, otherwise) => {
                let value = self.pipeline(pipeline, dot)?;
                if truthy(&value) {
                    self.nodes(body, &value)?;
                } else {
                    self.nodes(otherwise, dot)?;
                }
            }
            Node::Range { key, value, over, body, otherwise } => {
                let items: Vec<(Value, Value)> = match self.pipeline(over, dot)? {
                    Value::Array(list) => {
                        list.into_iter().enumerate().map(|(i, v)| (Value::from(i), v)).collect()
                    }
                    Value::Object(map) => {
                        let mut items: Vec<_> = map.into_iter().map(|(k, v)| (Value::from(k), v)).collect();
                        items.sort_by_key(|(key, _)| display(key));
                        items
                    }
                    Value::Null => Vec::new(),
                    other => return Err(format!("range can't iterate over {}", display(&other))),
                };
                if items.is_empty() {
                    return self.nodes(otherwise, dot);
                }
                for (k, v) in items {
                    let depth = self.variables.len();
                    if let Some(name) = key {
                        self.variables.push((name.clone(), k));
                    }
                    if let Some(name) = value {
                        self.variables.push((name.clone(), v.clone()));
                    }
                    self.nodes(body, &v)?;
                    self.variables.truncate(depth);
                }
            }
        }
        Ok(())
    }

    fn pipeline(&self, pipeline: &Pipeline, dot: &Value) -> Result<Value, String> {
        let mut piped = None;
        for (at, command) in pipeline.iter().enumerate() {
            let next = pipeline.get(at + 1).map(|next| &next.head);
            let for_json = matches!(next, Some(Operand::Function(name)) if name == "json");
            piped = Some(self.command(command, piped, dot, for_json)?);
        }
        Ok(piped.unwrap_or(Value::Null))
    }

    fn command(
        &self,
        command: &Command,
        piped: Option<Value>,
        dot: &Value,
        for_json: bool,
    ) -> Result<Value, String> {
        // Of what is not set JSON says that.
        let value = |operand, json| if json { self.as_is(operand, dot) } else { self.operand(operand, dot) };
        let Operand::Function(name) = &command.head else {
            if !command.args.is_empty() || piped.is_some() {
                return Err("can't give argument to non-function".to_owned());
            }
            return value(&command.head, for_json);
        };
        let mut args =
            command.args.iter().map(|arg| value(arg, name == "json")).collect::<Result<Vec<_>, _>>()?;
        args.extend(piped);
        call(name, &args)
    }

    /// An operand's value; the empty one of its type for a field that is not set.
    fn operand(&self, operand: &Operand, dot: &Value) -> Result<Value, String> {
        let value = self.as_is(operand, dot)?;
        let (Operand::Field(names) | Operand::Variable(_, names) | Operand::Group(_, names)) = operand else {
            return Ok(value);
        };
        // Not for what a user named so in a map.
        let blank = match names.as_slice() {
            [.., map, _] if (self.blank)(map).is_some_and(|blank| blank.is_object()) => None,
            [.., name] if value.is_null() => (self.blank)(name),
            _ => None,
        };
        Ok(blank.unwrap_or(value))
    }

    fn as_is(&self, operand: &Operand, dot: &Value) -> Result<Value, String> {
        match operand {
            Operand::Literal(value) => Ok(value.clone()),
            Operand::Field(names) => self.walk(dot, names),
            Operand::Variable(name, chain) => {
                let (_, value) = self
                    .variables
                    .iter()
                    .rev()
                    .find(|(known, _)| known == name)
                    .ok_or_else(|| format!("undefined variable \"${name}\""))?;
                self.walk(value, chain)
            }
            Operand::Group(pipeline, chain) => self.walk(&self.pipeline(pipeline, dot)?, chain),
            Operand::Function(name) => call(name, &[]),
        }
    }

    fn walk(&self, from: &Value, names: &[String]) -> Result<Value, String> {
        let mut value = from;
        let mut must_exist = self.root == Some(from);
        for name in names {
            value = match value {
                Value::Object(map) => match map.get(name) {
                    Some(value) => value,
                    None if must_exist => {
                        let known: Vec<_> = map.keys().map(String::as_str).collect();
                        return Err(format!("can't evaluate field {name}: known are {}", known.join(", ")));
                    }
                    None => &Value::Null,
                },
                Value::Null => &Value::Null,
                other => return Err(format!("can't evaluate field {name} in {}", display(other))),
            };
            must_exist = (self.blank)(name).is_some_and(|blank| !blank.is_object());
        }
        Ok(value.clone())
    }
}

fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
    }
}

/// As Go's `fmt.Print` shows it.
fn display(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(display).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let mut items: Vec<_> = map.iter().map(|(k, v)| format!("{k}:{}", display(v))).collect();
            items.sort();
            format!("map[{}]", items.join(" "))
        }
        other => other.to_string(),
    }
}

fn call(name: &str, args: &[Value]) -> Result<Value, String> {
    let arg =
        |i: usize| args.get(i).ok_or_else(|| format!("wrong number of args for {name}: got {}", args.len()));
    let text = |i: usize| {
        arg(i)?.as_str().ok_or_else(|| format!("{name}: expected a string, found {}", display(&args[i])))
    };
    let count = |i: usize| {
        let number = arg(i)?.as_u64().and_then(|n| usize::try_from(n).ok());
        number.ok_or_else(|| format!("{name}: expected a number, found {}", display(&args[i])))
    };
    Ok(match name {
        "and" => args.iter().find(|v| !truthy(v)).or(args.last()).cloned().unwrap_or(Value::Null),
        "or" => args.iter().find(|v| truthy(v)).or(args.last()).cloned().unwrap_or(Value::Null),
        "not" => (!truthy(arg(0)?)).into(),
        "eq" => {
            arg(1)?;
            args[1..].iter().any(|v| *v == args[0]).into()
        }
        "ne" => (arg(0)? != arg(1)?).into(),
        "lt" => compare(arg(0)?, arg(1)?)?.is_lt().into(),
        "le" => compare(arg(0)?, arg(1)?)?.is_le().into(),
        "gt" => compare(arg(0)?, arg(1)?)?.is_gt().into(),
        "ge" => compare(arg(0)?, arg(1)?)?.is_ge().into(),
        "len" => match arg(0)? {
            Value::String(s) => s.len().into(),
            Value::Array(a) => a.len().into(),
            Value::Object(o) => o.len().into(),
            other => return Err(format!("len of {}", display(other))),
        },
        "index" => {
            let value = arg(0)?.clone();
            args[1..].iter().try_fold(value, |value, key| index(&value, key))?
        }
        "print" => args.iter().map(display).collect::<String>().into(),
        "println" => (args.iter().map(display).collect::<Vec<_>>().join(" ") + "\n").into(),
        "printf" => printf(text(0)?, &args[1..]).into(),
        "json" => serde_json::to_string(arg(0)?).map_err(|e| e.to_string())?.into(),
        "split" => text(0)?.split(text(1)?).map(Value::from).collect(),
        "join" => {
            let list = arg(0)?.as_array().ok_or("join: expected a list")?;
            list.iter().map(display).collect::<Vec<_>>().join(text(1)?).into()
        }
        "title" => {
            let mut start = true;
            let upper_first = |c: char| {
                let up = std::mem::replace(&mut start, !c.is_alphanumeric());
                if up { c.to_ascii_uppercase() } else { c }
            };
            text(0)?.chars().map(upper_first).collect::<String>().into()
        }
        "lower" => text(0)?.to_lowercase().into(),
        "upper" => text(0)?.to_uppercase().into(),
        "pad" if text(0)?.is_empty() => "".into(),
        "pad" => format!("{}{}{}", " ".repeat(count(1)?), text(0)?, " ".repeat(count(2)?)).into(),
        "truncate" => text(0)?.chars().take(count(1)?).collect::<String>().into(),
        _ => return Err(format!("function \"{name}\" not defined")),
    })
}

fn compare(a: &Value, b: &Value) -> Result<std::cmp::Ordering, String> {
    let order = match (a, b) {
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
        _ => None,
    };
    order.ok_or_else(|| format!("incompatible types for comparison: {} and {}", display(a), display(b)))
}

fn index(value: &Value, key: &Value) -> Result<Value, String> {
    match (value, key) {
        (Value::Array(list), Value::Number(n)) => n
            .as_u64()
            .and_then(|n| list.get(usize::try_from(n).ok()?))
            .cloned()
            .ok_or_else(|| format!("index out of range: {n}")),
        (Value::Object(map), Value::String(key)) => Ok(map.get(key).cloned().unwrap_or_else(|| "".into())),
        _ => Err(format!("can't index {} with {}", display(value), display(key))),
    }
}

/// The number that comes next, if one does.
fn digits(chars: &mut Peekable<Chars<'_>>) -> Option<usize> {
    std::iter::from_fn(|| chars.next_if(char::is_ascii_digit)).collect::<String>().parse().ok()
}

/// `%s %d %v %t %f %q %x %%`, each with `-` or `0`, a width and a precision as in Go.
fn printf(format: &str, args: &[Value]) -> String {
    let mut out = String::new();
    let mut args = args.iter();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let left = chars.next_if_eq(&'-').is_some();
        let zeros = !left && chars.next_if_eq(&'0').is_some();
        let width = digits(&mut chars).unwrap_or(0);
        let precision = chars.next_if_eq(&'.').map(|_| digits(&mut chars).unwrap_or(0));
        let Some(verb) = chars.next() else {
            out.push_str("%!(NOVERB)");
            break;
        };
        if verb == '%' {
            out.push('%');
            continue;
        }
        let shown = |value: &Value| -> String {
            display(value).chars().take(precision.unwrap_or(usize::MAX)).collect()
        };
        let text: String = match (verb, args.next()) {
            (_, None) => format!("%!{verb}(MISSING)"),
            ('q', Some(value)) => format!("{:?}", shown(value)),
            ('x', Some(Value::Number(n))) => format!("{:x}", n.as_u64().unwrap_or(0)),
            ('f', Some(Value::Number(n))) => {
                format!("{:.*}", precision.unwrap_or(6), n.as_f64().unwrap_or(f64::NAN))
            }
            ('d' | 't', Some(value)) => display(value),
            ('s' | 'v' | 'x', Some(value)) => shown(value),
            (_, Some(value)) => format!("%!{verb}({})", display(value)),
        };
        let number = verb == 'd' || verb == 'f' || verb == 'x';
        match (left, zeros && number) {
            (true, _) => out.push_str(&format!("{text:<width$}")),
            (_, true) => {
                // The sign stands before the zeros.
                let (sign, digits) = text.strip_prefix('-').map_or(("", &*text), |digits| ("-", digits));
                out.push_str(&format!("{sign}{digits:0>0$}", width.saturating_sub(sign.len())));
            }
            _ => out.push_str(&format!("{text:>width$}")),
        }
    }
    out
}
