//! A value as a file or an annotation gives it, before its key says what it has to be.

use std::fmt;

use toml::de::DeValue;

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<String>),
    /// What no key takes: a date, a table, a list of something else than text.
    Other(String),
}

impl Value {
    pub fn of(value: &DeValue) -> Value {
        match value {
            DeValue::Boolean(b) => Value::Bool(*b),
            DeValue::String(s) => Value::Text(s.to_string()),
            DeValue::Integer(i) => {
                let digits = i.as_str().replace('_', "");
                i64::from_str_radix(&digits, i.radix()).map(Value::Int).unwrap_or_else(|_| Value::Other(digits))
            }
            DeValue::Float(f) => f.as_str().replace('_', "").parse().map(Value::Float).unwrap_or_else(|_| Value::Other(f.to_string())),
            DeValue::Array(items) => {
                let texts: Option<Vec<String>> = items.iter().map(|i| i.get_ref().as_str().map(str::to_owned)).collect();
                texts.map(Value::List).unwrap_or_else(|| Value::Other("a list of something else than text".into()))
            }
            other => Value::Other(format!("a {}", other.type_str())),
        }
    }

    /// An annotation is text: what it is a text of, its look says. Keys that want text are asked with [`Value::Text`].
    pub fn guess(text: &str) -> Value {
        let t = text.trim();
        match t {
            "true" => return Value::Bool(true),
            "false" => return Value::Bool(false),
            _ => {}
        }
        if let Ok(i) = t.parse() {
            return Value::Int(i);
        }
        if t.bytes().all(|b| b.is_ascii_digit() || b".-+".contains(&b)) {
            if let Ok(f) = t.parse() {
                return Value::Float(f);
            }
        }
        Value::Text(text.to_owned())
    }

    /// A list in an annotation: JSON, or separated by `;`, or by white space where `spaces`.
    pub fn list(text: &str, spaces: bool) -> Value {
        if text.trim_start().starts_with('[') {
            return serde_json::from_str(text).map(Value::List).unwrap_or_else(|_| Value::Text(text.to_owned()));
        }
        let parts: Vec<&str> =
            if spaces && !text.contains(';') { text.split_whitespace().collect() } else { text.split(';').map(str::trim).collect() };
        Value::List(parts.into_iter().filter(|p| !p.is_empty()).map(String::from).collect())
    }
}

/// As in a file.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Bool(b) => write!(f, "{b}"),
            Value::Int(i) => write!(f, "{i}"),
            Value::Float(x) => write!(f, "{x:?}"),
            Value::Text(t) => write!(f, "{t:?}"),
            Value::List(l) => write!(f, "{l:?}"),
            Value::Other(what) => f.write_str(what),
        }
    }
}
