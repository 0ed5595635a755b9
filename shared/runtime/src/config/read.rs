//! Reads the merged tree into a role's struct and keeps, for every complaint, the key and the place.

use std::cell::RefCell;
use std::fmt;

use serde::de::value::StringDeserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, Unexpected, VariantAccess,
    Visitor,
};
use serde::{Deserializer, forward_to_deserialize_any};

use super::ConfigFault;
use super::tree::{Node, Place, Value, join};

/// Reads the whole tree.
pub(super) fn read<T: DeserializeOwned>(root: &Node) -> Result<T, ConfigFault> {
    let unknown = RefCell::new(Vec::new());
    let result = T::deserialize(Reader { node: root, path: String::new(), unknown: &unknown });
    let mut problems = unknown.into_inner();
    match result {
        Ok(value) if problems.is_empty() => Ok(value),
        Ok(_) => Err(ConfigFault { problems }),
        Err(error) => {
            problems.push(error.text);
            Err(ConfigFault { problems })
        }
    }
}

/// What is wrong; `placed` once key and place stand before it.
#[derive(Debug)]
struct Problem {
    text: String,
    placed: bool,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Problem {}

impl serde::de::Error for Problem {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { text: message.to_string(), placed: false }
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn serde::de::Expected) -> Self {
        Self::custom(format_args!("expected {expected}, found {found}"))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn serde::de::Expected) -> Self {
        Self::custom(format_args!("expected {expected}, found {found}"))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::custom(format_args!("the key `{field}` is missing"))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let list = expected.iter().map(|e| format!("`{e}`")).collect::<Vec<_>>().join(", ");
        Self::custom(format_args!("{variant:?} is none of {list}{}", did_you_mean(variant, expected)))
    }
}

fn did_you_mean(word: &str, candidates: &[&str]) -> String {
    let word = word.to_ascii_lowercase();
    let score = |c: &&&str| (strsim::jaro_winkler(&word, c) * 1000.0) as u32;
    candidates
        .iter()
        .max_by_key(score)
        .filter(|c| score(c) > 800)
        .map_or(String::new(), |c| format!("; did you mean `{c}`?"))
}

/// Reads one value of the tree.
struct Reader<'a> {
    node: &'a Node,
    path: String,
    unknown: &'a RefCell<Vec<String>>,
}

impl<'a> Reader<'a> {
    /// Puts key and place before a complaint that has none yet.
    fn at<T>(node: &Node, path: &str, result: Result<T, Problem>) -> Result<T, Problem> {
        result.map_err(|problem| {
            if problem.placed {
                return problem;
            }
            let place = &node.place;
            let text = match (place, path) {
                (Place::Nowhere, "") => problem.text,
                (_, "") => format!("{place}: {}", problem.text),
                _ => format!("{place}: `{path}`: {}", problem.text),
            };
            Problem { text, placed: true }
        })
    }

    /// Hands the value over as what it is; a text of the environment or a flag as its best reading.
    fn any<'de, V: Visitor<'de>>(
        self,
        visitor: V,
        fields: Option<&'static [&'static str]>,
    ) -> Result<V::Value, Problem> {
        let Self { node, path, unknown } = self;
        let result = match &node.value {
            Value::Table(table) => {
                if let Some(fields) = fields {
                    for (key, below) in table.iter().filter(|(k, _)| !fields.contains(&k.as_str())) {
                        let hint = did_you_mean(key, fields);
                        let hint = if hint.is_empty() { format!("; known here: {}", fields.join(", ")) } else { hint };
                        unknown.borrow_mut().push(format!("{}: unknown key `{}`{hint}", below.place, join(&path, key)));
                    }
                }
                let known = |k: &str| fields.is_none_or(|f| f.contains(&k));
                let entries = table.iter().filter(|(k, _)| known(k)).collect::<Vec<_>>().into_iter();
                visitor.visit_map(Table { entries, next: None, path: &path, unknown })
            }
            Value::Array(items) => visitor.visit_seq(Array { items: items.iter().enumerate(), path: &path, unknown }),
            Value::String(s) => visitor.visit_str(s),
            Value::Integer(i) => visitor.visit_i64(*i),
            Value::Float(f) => visitor.visit_f64(*f),
            Value::Boolean(b) => visitor.visit_bool(*b),
            Value::Text(text) => visitor.visit_str(text),
        };
        Self::at(node, &path, result)
    }

    /// A number or truth value out of a text; the text itself when it is neither, so that the visitor complains.
    fn parsed<'de, V: Visitor<'de>, T>(
        self,
        visitor: V,
        parse: impl FnOnce(&str) -> Option<T>,
        visit: impl FnOnce(V, T) -> Result<V::Value, Problem>,
    ) -> Result<V::Value, Problem> {
        match &self.node.value {
            Value::Text(text) => match parse(text.trim()) {
                Some(value) => Self::at(self.node, &self.path, visit(visitor, value)),
                None => self.any(visitor, None),
            },
            _ => self.any(visitor, None),
        }
    }
}

macro_rules! numbers {
    ($($method:ident: $type:ty => $visit:ident),+ $(,)?) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
            self.parsed(visitor, |t| t.parse::<$type>().ok(), |v, n| v.$visit(n))
        })+
    };
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Problem;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        self.any(visitor, None)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        self.any(visitor, Some(fields))
    }

    numbers! {
        deserialize_bool: bool => visit_bool,
        deserialize_i8: i64 => visit_i64, deserialize_i16: i64 => visit_i64, deserialize_i32: i64 => visit_i64, deserialize_i64: i64 => visit_i64,
        deserialize_u8: u64 => visit_u64, deserialize_u16: u64 => visit_u64, deserialize_u32: u64 => visit_u64, deserialize_u64: u64 => visit_u64,
        deserialize_f32: f64 => visit_f64, deserialize_f64: f64 => visit_f64,
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        // An empty variable takes an optional key away again.
        if matches!(&self.node.value, Value::Text(t) if t.is_empty()) {
            visitor.visit_none()
        } else {
            visitor.visit_some(self)
        }
    }

    /// A list in a variable or flag is written with commas.
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        let Value::Text(text) = &self.node.value else { return self.any(visitor, None) };
        let node = |part: &str| Node { value: Value::Text(part.to_owned()), place: self.node.place.clone() };
        let items: Vec<Node> = text.split(',').map(str::trim).filter(|p| !p.is_empty()).map(node).collect();
        let access = Array { items: items.iter().enumerate(), path: &self.path, unknown: self.unknown };
        Self::at(self.node, &self.path, visitor.visit_seq(access))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Problem> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        let Self { node, path, unknown } = self;
        let result = match &node.value {
            Value::String(s) | Value::Text(s) => visitor.visit_enum(s.as_str().into_deserializer()),
            Value::Table(table) if table.len() == 1 => {
                let (key, below) = table.iter().next().expect("its length is 1");
                visitor.visit_enum(Variant { key, below: Reader { node: below, path: join(&path, key), unknown } })
            }
            _ => Err(serde::de::Error::custom("expected one of the named choices")),
        };
        Self::at(node, &path, result)
    }

    fn is_human_readable(&self) -> bool {
        true
    }

    forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct map tuple_struct identifier ignored_any
    }
}

struct Table<'a> {
    entries: std::vec::IntoIter<(&'a String, &'a Node)>,
    next: Option<(&'a String, &'a Node)>,
    path: &'a str,
    unknown: &'a RefCell<Vec<String>>,
}

impl<'de> MapAccess<'de> for Table<'_> {
    type Error = Problem;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Problem> {
        self.next = self.entries.next();
        let Some((key, node)) = self.next else { return Ok(None) };
        let read: StringDeserializer<Problem> = key.clone().into_deserializer();
        Reader::at(node, &join(self.path, key), seed.deserialize(read)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Problem> {
        let (key, node) = self.next.take().expect("serde asks for a value after its key");
        let path = join(self.path, key);
        // Also here: a type that checks what it read complains after its reader has finished.
        Reader::at(node, &path, seed.deserialize(Reader { node, path: path.clone(), unknown: self.unknown }))
    }
}

struct Array<'a> {
    items: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
    path: &'a str,
    unknown: &'a RefCell<Vec<String>>,
}

impl<'de> SeqAccess<'de> for Array<'_> {
    type Error = Problem;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Problem> {
        let Some((i, node)) = self.items.next() else { return Ok(None) };
        let path = format!("{}[{i}]", self.path);
        Reader::at(node, &path, seed.deserialize(Reader { node, path: path.clone(), unknown: self.unknown })).map(Some)
    }
}

struct Variant<'a> {
    key: &'a str,
    below: Reader<'a>,
}

impl<'a, 'de> EnumAccess<'de> for Variant<'a> {
    type Error = Problem;
    type Variant = Reader<'a>;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Reader<'a>), Problem> {
        let key: StringDeserializer<Problem> = self.key.to_owned().into_deserializer();
        Ok((seed.deserialize(key)?, self.below))
    }
}

impl<'de> VariantAccess<'de> for Reader<'_> {
    type Error = Problem;

    fn unit_variant(self) -> Result<(), Problem> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Problem> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Problem> {
        self.deserialize_seq(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Problem> {
        self.any(visitor, Some(fields))
    }
}
