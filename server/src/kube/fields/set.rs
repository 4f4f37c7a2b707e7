//! A set of fields of an object, and its JSON form `FieldsV1`.
//!
//! A path is made of steps: `f:name` a field, `k:{"port":80}` the item of a list with these keys, `v:"x"` the item of this
//! value, `i:0` the item at this index. Laws: what is written is read back equal; written steps are in order (fields, keys,
//! values, indexes; `.` first); no child of a set is empty.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{Map, Value};

use super::MAX_DEPTH;

/// A JSON number, equal to another of the same value however they are written (80 and 80.0).
#[derive(Clone, Copy, Debug)]
pub enum Number {
    /// A whole number that JSON libraries hold as one.
    Int(i128),
    /// Any other; never a whole number that fits 64 bits, never NaN.
    Float(f64),
}

impl Number {
    /// The number in JSON's form.
    #[must_use]
    pub fn from_json(number: &serde_json::Number) -> Self {
        const LOW: f64 = i64::MIN as f64;
        const HIGH: f64 = u64::MAX as f64;
        if let Some(int) = number.as_i64() {
            return Self::Int(int.into());
        }
        if let Some(int) = number.as_u64() {
            return Self::Int(int.into());
        }
        let float = number.as_f64().unwrap_or_default();
        // HIGH is rounded up to 2^64, which does not fit.
        if float.fract() == 0.0 && (LOW..HIGH).contains(&float) { Self::Int(float as i128) } else { Self::Float(float) }
    }

    fn to_json(self) -> Value {
        match self {
            Self::Int(int) => match (i64::try_from(int), u64::try_from(int)) {
                (Ok(int), _) => int.into(),
                (_, Ok(int)) => int.into(),
                _ => Value::Null,
            },
            Self::Float(float) => serde_json::Number::from_f64(float).map_or(Value::Null, Value::Number),
        }
    }
}

impl Ord for Number {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Int(a), Self::Int(b)) => a.cmp(b),
            (Self::Float(a), Self::Float(b)) => a.total_cmp(b),
            // A float is broken, or outside of 64 bits: rounding the whole number cannot change which one is greater.
            (Self::Int(a), Self::Float(b)) => (*a as f64).total_cmp(b).then(Ordering::Less),
            (Self::Float(_), Self::Int(_)) => other.cmp(self).reverse(),
        }
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Number {}

/// A JSON value that is no object and no list, in structured-merge-diff's order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scalar {
    /// A number.
    Number(Number),
    /// A string.
    String(String),
    /// true or false.
    Bool(bool),
    /// null.
    Null,
}

impl Scalar {
    /// The scalar in JSON's form; `None`: it is an object or a list.
    #[must_use]
    pub fn from_json(value: &Value) -> Option<Self> {
        match value {
            Value::Null => Some(Self::Null),
            Value::Bool(is) => Some(Self::Bool(*is)),
            Value::Number(number) => Some(Self::Number(Number::from_json(number))),
            Value::String(text) => Some(Self::String(text.clone())),
            Value::Array(_) | Value::Object(_) => None,
        }
    }

    /// Its JSON form.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Bool(is) => Value::Bool(*is),
            Self::Number(number) => number.to_json(),
            Self::String(text) => Value::String(text.clone()),
        }
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String(text) => write!(f, "{text:?}"),
            other => write!(f, "{}", other.to_json()),
        }
    }
}

/// One step of a path (structured-merge-diff's `PathElement`), in its order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// A field of an object.
    Field(String),
    /// The item of a list whose fields have these values; by name.
    Key(Vec<(String, Scalar)>),
    /// The item of a list that is this.
    Value(Scalar),
    /// The item of a list at this index.
    Index(i64),
}

impl Step {
    /// A field of this name.
    #[must_use]
    pub fn field(name: &str) -> Self {
        Self::Field(name.to_owned())
    }

    /// Reads a step of `FieldsV1`; `None`: of a kind that a later version may know, to be left out.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Option<Self>, String> {
        if text.len() < 2 {
            return Err(format!("a step of fieldsV1 has at least 2 characters: {text:?}"));
        }
        let Some((kind, rest)) = text.split_once(':').filter(|(kind, _)| kind.len() == 1) else {
            return Err(format!("a step of fieldsV1 has a colon after its first character: {text:?}"));
        };
        let bad = || format!("a step of fieldsV1 cannot be read: {text:?}");
        match kind {
            "f" => Ok(Some(Self::field(rest))),
            "v" => {
                let value: Value = serde_json::from_str(rest).map_err(|_| bad())?;
                Scalar::from_json(&value).map(|scalar| Some(Self::Value(scalar))).ok_or_else(bad)
            }
            "k" => {
                let keys: Map<String, Value> = serde_json::from_str(rest).map_err(|_| bad())?;
                let scalar = |(name, value): (&String, &Value)| Some((name.clone(), Scalar::from_json(value)?));
                let mut keys = keys.iter().map(scalar).collect::<Option<Vec<_>>>().ok_or_else(bad)?;
                keys.sort();
                Ok(Some(Self::Key(keys)))
            }
            "i" => rest.parse().map(|index| Some(Self::Index(index))).map_err(|_| bad()),
            _ => Ok(None),
        }
    }

    /// The step as `FieldsV1` has it; keys are compact JSON, by name.
    #[must_use]
    pub fn render(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(keys) => {
                let fields = keys.iter().map(|(name, value)| (name.clone(), value.to_json())).collect();
                format!("k:{}", Value::Object(fields))
            }
            Self::Value(value) => format!("v:{}", value.to_json()),
            Self::Index(index) => format!("i:{index}"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Key(keys) => {
                let keys: Vec<String> = keys.iter().map(|(name, value)| format!("{name}={value}")).collect();
                write!(f, "[{}]", keys.join(","))
            }
            Self::Value(value) => write!(f, "[={value}]"),
            Self::Index(index) => write!(f, "[{index}]"),
        }
    }
}

/// The way to a field, written as Kubernetes' errors do: `.spec.ports[port=80,protocol="TCP"].targetPort`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path(pub Vec<Step>);

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|step| write!(f, "{step}"))
    }
}

/// A set of fields. A field that is in it says nothing of the fields around or below.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    pub(super) members: BTreeSet<Step>,
    pub(super) children: BTreeMap<Step, Set>,
}

impl Set {
    /// True if no field is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.is_empty()
    }

    /// Puts in a field, but none of those around it. The whole object cannot be owned: an empty path does nothing.
    pub fn insert(&mut self, path: &[Step]) {
        match path {
            [] => {}
            [last] => drop(self.members.insert(last.clone())),
            [first, rest @ ..] => self.children.entry(first.clone()).or_default().insert(rest),
        }
    }

    /// True if the field is in it.
    #[must_use]
    pub fn has(&self, path: &[Step]) -> bool {
        match path {
            [] => false,
            [last] => self.members.contains(last),
            [first, rest @ ..] => self.children.get(first).is_some_and(|child| child.has(rest)),
        }
    }

    /// Puts a set below a step; an empty one does nothing.
    pub(super) fn graft(&mut self, step: Step, child: Self) {
        if !child.is_empty() {
            self.children.insert(step, child);
        }
    }

    /// What is in one or the other.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut all = self.clone();
        all.members.extend(other.members.iter().cloned());
        for (step, child) in &other.children {
            let mine = all.children.remove(step);
            all.children.insert(step.clone(), mine.map_or_else(|| child.clone(), |mine| mine.union(child)));
        }
        all
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut both =
            Self { members: self.members.intersection(&other.members).cloned().collect(), ..Self::default() };
        for (step, child) in &self.children {
            if let Some(theirs) = other.children.get(step) {
                both.graft(step.clone(), child.intersection(theirs));
            }
        }
        both
    }

    /// What is in this one and not in the other; what lies below a field of the other stays.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let mut left = Self { members: self.members.difference(&other.members).cloned().collect(), ..Self::default() };
        for (step, child) in &self.children {
            let rest = other.children.get(step).map_or_else(|| child.clone(), |theirs| child.difference(theirs));
            left.graft(step.clone(), rest);
        }
        left
    }

    /// Without these fields of the whole object and all that lies below them.
    pub(super) fn without_top(mut self, names: &[&str]) -> Self {
        let named = |step: &Step| matches!(step, Step::Field(name) if names.contains(&name.as_str()));
        self.members.retain(|step| !named(step));
        self.children.retain(|step, _| !named(step));
        self
    }

    /// Only the fields that have none below them in this set.
    #[must_use]
    pub fn leaves(&self) -> Self {
        let is_leaf = |step: &&Step| !self.children.contains_key(step);
        Self {
            members: self.members.iter().filter(is_leaf).cloned().collect(),
            children: self.children.iter().map(|(step, child)| (step.clone(), child.leaves())).collect(),
        }
    }

    /// Every field: those of a level in order, then those below.
    #[must_use]
    pub fn paths(&self) -> Vec<Path> {
        let mut out = Vec::new();
        self.collect(&mut Vec::new(), &mut out);
        out
    }

    fn collect(&self, way: &mut Vec<Step>, out: &mut Vec<Path>) {
        for step in &self.members {
            out.push(Path(way.iter().cloned().chain([step.clone()]).collect()));
        }
        for (step, child) in &self.children {
            way.push(step.clone());
            child.collect(way, out);
            way.pop();
        }
    }

    /// Reads `FieldsV1`.
    ///
    /// # Errors
    /// What is wrong with it; nested deeper than [`MAX_DEPTH`] is wrong too.
    pub fn from_json(fields: &Value) -> Result<Self, String> {
        Ok(Self::read(fields, MAX_DEPTH)?.0)
    }

    /// The set below a step, and whether the step itself is a member.
    fn read(fields: &Value, left: usize) -> Result<(Self, bool), String> {
        let Value::Object(fields) = fields else { return Err("fieldsV1 is made of objects".to_owned()) };
        let Some(left) = left.checked_sub(1) else { return Err("fieldsV1 is nested too deeply".to_owned()) };
        let mut set = Self::default();
        let mut is_member = false;
        for (key, below) in fields {
            if key == "." {
                is_member = true;
                continue;
            }
            let Some(step) = Step::parse(key)? else { continue };
            let (child, is_child) = Self::read(below, left)?;
            if is_child {
                set.members.insert(step.clone());
            }
            set.graft(step, child);
        }
        is_member |= set.is_empty();
        Ok((set, is_member))
    }

    /// Writes `FieldsV1`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        Value::Object(self.write(false))
    }

    fn write(&self, is_member: bool) -> Map<String, Value> {
        let mut out = Map::new();
        if is_member && !self.is_empty() {
            out.insert(".".to_owned(), Value::Object(Map::new()));
        }
        let steps: BTreeSet<&Step> = self.members.iter().chain(self.children.keys()).collect();
        for step in steps {
            let below = self.children.get(step).map(|child| child.write(self.members.contains(step)));
            out.insert(step.render(), Value::Object(below.unwrap_or_default()));
        }
        out
    }
}
