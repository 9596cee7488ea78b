//! Expressions: CEL, the Common Expression Language, within bounds.
//!
//! An expression is compiled when its workflow is registered, and what it names is checked then: a wrong name is found
//! before any run meets it. Its evaluation depends on nothing but the values it is given, and ends soon:
//!
//! - its text is short and its nesting shallow, so that it needs little stack;
//! - every value that a function is called with, a list is made of or a macro goes through is *weighed*, and the sum of
//!   weights is bounded ([`MAX_WEIGHT`]). What a value weighs is about what it costs to copy it. So neither time nor memory
//!   grow beyond that, whatever is written: a macro in a macro, or a text that is doubled again and again;
//! - patterns are written out and small, as each use of one compiles it;
//! - keys of a map are gone through in their order, not in the order of a hash.
//!
//! The weighing is done by calls that are put into the compiled expression: see [`Meter`].

use std::any::Any;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use baton_protocol::definition::{Expression as Source, MAX_EXPRESSION_BYTES};
use baton_protocol::nearest::nearest;
use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};
use cel::common::types::{CelBytes, CelList, CelMap, CelString, DYN_TYPE, Type};
use cel::common::value::{CowVal, StaticVal, Val};
use cel::{Context, Env, ExecutionError};
use serde::ser::{Serialize, SerializeMap as _, SerializeSeq as _, Serializer};
use serde_json::Value;

/// The most that the values of one evaluation may weigh together. One unit is a number, sixteen bytes of text, or a list
/// or map without what is in it.
const MAX_WEIGHT: u64 = 2_000_000;

/// How deep an expression may nest, once it is read; the reader of it takes much more of the stack for each level.
const MAX_DEPTH: usize = 40;
const MAX_READER_DEPTH: u16 = 20;

/// What a pattern weighs: it is compiled with every use.
const PATTERN_WEIGHT: u64 = 500;

/// How large a pattern may be once it is compiled, in bytes.
const MAX_PATTERN_BYTES: usize = 64 * 1024;

/// What says that the weight is too large.
const TOO_HEAVY: &str = "too heavy";

/// The calls that are put in, which nobody can write: names have no `@`.
const WEIGH: &str = "@weigh";
const ITEMS: &str = "@items";
const PATTERN: &str = "@pattern";
const BUDGET: &str = "@budget";

/// What can be called, beside operators and macros.
const FUNCTIONS: [&str; 13] = [
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "bool",
    "int",
    "uint",
    "double",
    "string",
    "bytes",
    "type",
    "dyn",
];

/// The macros. They are no calls once an expression is read; one with wrong arguments still is.
const MACROS: [&str; 6] = ["has", "all", "exists", "exists_one", "map", "filter"];

/// Names of types: what `type(x)` gives is compared with them.
const TYPES: [&str; 10] = ["bool", "int", "uint", "double", "string", "bytes", "list", "map", "null_type", "type"];

/// An expression that can be evaluated.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Program {
    expression: IdedExpr,
    pub(crate) reads: Reads,
}

/// What an expression looks at. Only that is made ready for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reads {
    pub(crate) input: bool,
    pub(crate) event: bool,
    pub(crate) result: bool,
    pub(crate) item: bool,
    pub(crate) index: bool,
    pub(crate) results: Members,
    pub(crate) status: Members,
}

/// Which members of a variable an expression looks at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Members {
    pub(crate) named: BTreeSet<String>,
    /// Which ones is known only when it is evaluated.
    pub(crate) any: bool,
}

impl Members {
    pub(crate) fn is_none(&self) -> bool {
        self.named.is_empty() && !self.any
    }
}

/// What an expression may speak of.
pub(crate) struct Scope<'a> {
    pub(crate) place: Place,
    /// Whether this is a stage whose results and status it may look at; says why not.
    pub(crate) stage: &'a dyn Fn(&str) -> Result<(), String>,
}

/// Where an expression stands, and so what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A stage as a whole.
    Stage,
    /// One item of a stage: there are `item` and `index`.
    Item,
    /// A trigger: there is `event`, and nothing else.
    Event,
    /// What was reported for a stage, or for each item of it: there is `result`.
    Output { each: bool },
}

impl Place {
    /// The variables that there are.
    fn variables(self) -> &'static [&'static str] {
        match self {
            Self::Stage => &["input", "results", "status"],
            Self::Event => &["event"],
            Self::Item => &["input", "results", "status", "item", "index"],
            Self::Output { each: false } => &["input", "results", "status", "result"],
            Self::Output { each: true } => &["input", "results", "status", "result", "item", "index"],
        }
    }
}

/// The values for an evaluation.
#[derive(Debug, Default)]
pub(crate) struct Values {
    pub(crate) input: Option<Value>,
    pub(crate) event: Option<Value>,
    pub(crate) result: Option<Value>,
    pub(crate) item: Option<Value>,
    pub(crate) index: Option<Value>,
    pub(crate) results: Option<Value>,
    pub(crate) status: Option<Value>,
}

static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib().with_optional_support(false);
    for (name, function) in [(WEIGH, weigh as cel::common::functions::Function), (ITEMS, items), (PATTERN, pattern)] {
        env.add_overload(name, name, vec![DYN_TYPE, DYN_TYPE], function).expect("the name is taken by nobody else");
    }
    Arc::new(env)
});

impl Program {
    /// Reads an expression, and checks what it names.
    pub(crate) fn compile(source: &Source, scope: &Scope<'_>) -> Result<Self, String> {
        let text = source.as_str();
        if text.trim().is_empty() {
            return Err("the expression is empty".to_owned());
        }
        if text.len() > MAX_EXPRESSION_BYTES {
            return Err(format!("the expression has {} bytes; at most {MAX_EXPRESSION_BYTES} are allowed", text.len()));
        }
        let read = ENV.parser().max_recursion_depth(MAX_READER_DEPTH).parse(text);
        let mut expression = read.map_err(|errors| {
            let first = errors.errors.first();
            let what = first.map_or("it is no expression", |error| error.msg.lines().next().unwrap_or_default());
            let what = what.strip_prefix("Syntax error: ").unwrap_or(what);
            let what = match what.split_once(" expecting ").map_or(what, |(what, _)| what) {
                what if what.contains("<EOF>") => "it ends too soon",
                what if what.contains("ecursion limit") => "it nests more than 20 levels deep",
                what => what,
            };
            match first {
                Some(error) if error.pos.0 > 1 => {
                    format!(
                        "the expression can not be read: {what} (its line {}, character {})",
                        error.pos.0, error.pos.1
                    )
                }
                Some(error) => format!("the expression can not be read: {what} (its character {})", error.pos.1.max(1)),
                None => format!("the expression can not be read: {what}"),
            }
        })?;
        let mut names = Names { scope, reads: Reads::default(), bound: Vec::new() };
        names.check(&expression, 0)?;
        Meter::put_into(&mut expression);
        Ok(Self { expression, reads: names.reads })
    }

    /// Evaluates it to a condition.
    pub(crate) fn holds(&self, values: Values) -> Result<bool, String> {
        match self.run(values)? {
            cel::Value::Bool(holds) => Ok(holds),
            other => Err(format!("it gives {}, and not true or false", kind(&other))),
        }
    }

    /// Evaluates it to a value.
    pub(crate) fn value(&self, values: Values) -> Result<Value, String> {
        let value = self.run(values)?;
        value.json().map_err(|_| format!("it gives {}, which can not be written as JSON", kind(&value)))
    }

    fn run(&self, values: Values) -> Result<cel::Value, String> {
        let mut context = Context::with_env(Arc::clone(&ENV));
        let Values { input, event, result, item, index, results, status } = values;
        let own = [("input", input), ("event", event), ("result", result), ("item", item), ("index", index)];
        for (name, value) in own.into_iter().chain([("results", results), ("status", status)]) {
            let Some(value) = value else { continue };
            let value = cel::to_value(Plain(&value)).map_err(|error| format!("{name} can not be read: {error}"))?;
            context.add_variable_from_value(name, value);
        }
        context.add_variable_as_val(BUDGET, Box::new(Budget(Arc::new(AtomicU64::new(MAX_WEIGHT)))));
        cel::Value::resolve(&self.expression, &context).map_err(|error| say(&error))
    }
}

fn kind(value: &cel::Value) -> &'static str {
    match value {
        cel::Value::List(_) => "a list",
        cel::Value::Map(_) => "an object",
        cel::Value::Int(_) | cel::Value::UInt(_) | cel::Value::Float(_) => "a number",
        cel::Value::String(_) => "a text",
        cel::Value::Bytes(_) => "bytes",
        cel::Value::Bool(_) => "true or false",
        cel::Value::Null => "null",
        _ => "something else",
    }
}

/// What went wrong, without the values it went wrong with: they may be large, and maps in them come in any order.
fn say(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(key) => format!("there is no key {key:?}"),
        ExecutionError::UndeclaredReference(name) => format!("there is nothing called {name:?}"),
        ExecutionError::NoSuchOverload(overload) => overload.to_string(),
        ExecutionError::FunctionError { message, .. } if message == TOO_HEAVY => format!(
            "it is too much work: what it goes through and puts together may weigh {MAX_WEIGHT} units (numbers, or 16 \
             bytes of text)"
        ),
        ExecutionError::FunctionError { function, message } => format!("{function}: {message}"),
        ExecutionError::UnexpectedType { got, want } => format!("{want} is needed where {got} is given"),
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => "it divides by zero".to_owned(),
        ExecutionError::Overflow(..) => "a number gets too large".to_owned(),
        ExecutionError::IndexOutOfBounds(_) => "the list is shorter than that".to_owned(),
        ExecutionError::DuplicateKey(_) => "an object has a key twice".to_owned(),
        ExecutionError::ValuesNotComparable(..) => "values of different kinds are compared".to_owned(),
        ExecutionError::UnsupportedBinaryOperator(operator, ..) => {
            format!("values of these kinds can not be taken together by `{operator}`")
        }
        _ => "it can not be evaluated on these values".to_owned(),
    }
}

/// Looks at every name in an expression.
struct Names<'a> {
    scope: &'a Scope<'a>,
    reads: Reads,
    /// The variables of the macros that are around.
    bound: Vec<String>,
}

impl Names<'_> {
    fn check(&mut self, expression: &IdedExpr, depth: usize) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err(format!("the expression nests more than {MAX_DEPTH} levels deep"));
        }
        let depth = depth + 1;
        match &expression.expr {
            Expr::Ident(name) => self.name(name),
            Expr::Select(select) => match self.variable(&select.operand) {
                Some(variable) => self.member(variable, &select.field),
                None => self.check(&select.operand, depth),
            },
            Expr::Call(call) => self.call(call, depth),
            Expr::List(list) => list.elements.iter().try_for_each(|element| self.check(element, depth)),
            Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => {
                    self.check(&entry.key, depth)?;
                    self.check(&entry.value, depth)
                }
                EntryExpr::StructField(field) => self.check(&field.value, depth),
            }),
            Expr::Comprehension(comprehension) => {
                self.check(&comprehension.iter_range, depth)?;
                self.check(&comprehension.accu_init, depth)?;
                let bound = self.bound.len();
                self.bound.push(comprehension.accu_var.clone());
                self.bound.push(comprehension.iter_var.clone());
                self.bound.extend(comprehension.iter_var2.clone());
                self.check(&comprehension.loop_cond, depth)?;
                self.check(&comprehension.loop_step, depth)?;
                self.check(&comprehension.result, depth)?;
                self.bound.truncate(bound);
                Ok(())
            }
            Expr::Struct(made) => Err(format!("there is no type {:?}", made.type_name)),
            Expr::Literal(_) => Ok(()),
            Expr::Unspecified => Err("the expression is not complete".to_owned()),
        }
    }

    fn call(&mut self, call: &CallExpr, depth: usize) -> Result<(), String> {
        let name = call.func_name.as_str();
        let is_operator = !name.starts_with(|first: char| first.is_ascii_alphabetic());
        if MACROS.contains(&name) {
            return Err(format!("`{name}` is not called like that: for example {}", example(name)));
        }
        if !is_operator && !FUNCTIONS.contains(&name) {
            let hint = nearest(name, FUNCTIONS.into_iter().chain(MACROS));
            let hint = hint.map_or_else(
                || format!("; there are: {}, {}", FUNCTIONS.join(", "), MACROS.join(", ")),
                |hint| format!("; did you mean `{hint}`?"),
            );
            return Err(format!("there is no function `{name}`{hint}"));
        }
        if name == "matches" {
            check_pattern(call)?;
        }
        // `results["STAGE"]`
        if name == operators::INDEX
            && let [of, index] = call.args.as_slice()
            && let Some(variable) = self.variable(of)
            && let Expr::Literal(LiteralValue::String(member)) = &index.expr
        {
            return self.member(variable, member.inner());
        }
        call.target.iter().map(|target| &**target).chain(&call.args).try_for_each(|arg| self.check(arg, depth))
    }

    /// `results` or `status`, if that is what is meant.
    fn variable(&self, expression: &IdedExpr) -> Option<&'static str> {
        let Expr::Ident(name) = &expression.expr else { return None };
        let variable = ["results", "status"].into_iter().find(|variable| variable == name)?;
        (!self.bound.contains(name)).then_some(variable)
    }

    fn member(&mut self, variable: &str, member: &str) -> Result<(), String> {
        (self.scope.stage)(member).map_err(|why| format!("{variable}.{member}: {why}"))?;
        let members = if variable == "results" { &mut self.reads.results } else { &mut self.reads.status };
        members.named.insert(member.to_owned());
        Ok(())
    }

    fn name(&mut self, name: &str) -> Result<(), String> {
        if self.bound.iter().any(|bound| bound == name) {
            return Ok(());
        }
        let variables = self.scope.place.variables();
        match name {
            name if TYPES.contains(&name) => {}
            name if self.scope.place == Place::Event && !variables.contains(&name) => {
                let hint = nearest(name, ["event"]).map_or("there is `event`", |_| "did you mean `event`?");
                return Err(format!("there is nothing called `{name}`; {hint}"));
            }
            "event" if variables.contains(&name) => self.reads.event = true,
            "result" if !variables.contains(&name) => {
                return Err("`result` is there in `output` only; `results.STAGE` is another stage's".to_owned());
            }
            "item" | "index" if !variables.contains(&name) => {
                return Err(format!("`{name}` is there in `input` and `output` of a stage with `for_each` only"));
            }
            "input" => self.reads.input = true,
            "result" => self.reads.result = true,
            "item" => self.reads.item = true,
            "index" => self.reads.index = true,
            "results" => self.reads.results.any = true,
            "status" => self.reads.status.any = true,
            name => {
                let hint = nearest(name, variables.iter().copied().chain(self.bound.iter().map(String::as_str)));
                let hint = hint.map_or_else(
                    || format!("there are {}; a text is written in quotes", variables.join(", ")),
                    |hint| format!("did you mean `{hint}`?"),
                );
                return Err(format!("there is nothing called `{name}`; {hint}"));
            }
        }
        Ok(())
    }
}

fn example(name: &str) -> &'static str {
    match name {
        "has" => "`has(input.topic)`",
        "map" => "`input.list.map(item, item.name)`",
        "filter" => "`input.list.filter(item, item.good)`",
        _ => "`input.list.all(item, item > 0)`",
    }
}

fn check_pattern(call: &CallExpr) -> Result<(), String> {
    let Some(IdedExpr { expr: Expr::Literal(LiteralValue::String(pattern)), .. }) = call.args.last() else {
        return Err("the pattern of `matches` must be written out, as a text in quotes".to_owned());
    };
    let built = regex::RegexBuilder::new(pattern.inner()).size_limit(MAX_PATTERN_BYTES).build();
    built.map(|_| ()).map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => format!("the pattern {:?} is too large", pattern.inner()),
        error => {
            let text = error.to_string();
            let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            format!("the pattern {:?} can not be read: {reason}", pattern.inner())
        }
    })
}

/// Puts calls into an expression that weigh what it works with.
struct Meter;

impl Meter {
    fn put_into(expression: &mut IdedExpr) {
        match &mut expression.expr {
            Expr::Call(call) => {
                let weighs = !matches!(
                    call.func_name.as_str(),
                    operators::CONDITIONAL
                        | operators::LOGICAL_AND
                        | operators::LOGICAL_OR
                        | operators::LOGICAL_NOT
                        | operators::NOT_STRICTLY_FALSE
                        | operators::INDEX
                );
                let is_pattern = call.func_name == "matches";
                let last = call.args.len().saturating_sub(1);
                let target = call.target.iter_mut().map(|target| (false, &mut **target));
                let args = call.args.iter_mut().enumerate().map(|(i, arg)| (is_pattern && i == last, arg));
                for (is_pattern, arg) in target.chain(args) {
                    if is_pattern {
                        wrap(arg, PATTERN);
                    } else if weighs {
                        Self::weigh(arg);
                    } else {
                        Self::put_into(arg);
                    }
                }
            }
            Expr::Select(select) => Self::put_into(&mut select.operand),
            Expr::List(list) => list.elements.iter_mut().for_each(Self::weigh),
            Expr::Map(map) => {
                for entry in &mut map.entries {
                    if let EntryExpr::MapEntry(entry) = &mut entry.expr {
                        Self::weigh(&mut entry.key);
                        Self::weigh(&mut entry.value);
                    }
                }
            }
            Expr::Comprehension(comprehension) => {
                Self::put_into(&mut comprehension.iter_range);
                wrap(&mut comprehension.iter_range, ITEMS);
                Self::put_into(&mut comprehension.loop_cond);
                Self::put_into(&mut comprehension.loop_step);
                Self::put_into(&mut comprehension.result);
            }
            Expr::Ident(_) | Expr::Literal(_) | Expr::Struct(_) | Expr::Unspecified => {}
        }
    }

    /// Weighs what this gives. What a macro gathers in a variable of its own is not weighed each time that something is
    /// added to it, and the list that is added stays a list: the interpreter knows that form and adds in place.
    fn weigh(expression: &mut IdedExpr) {
        Self::put_into(expression);
        match &expression.expr {
            Expr::Literal(_) | Expr::List(_) => {}
            Expr::Ident(name) if name.starts_with('@') => {}
            _ => wrap(expression, WEIGH),
        }
    }
}

fn wrap(expression: &mut IdedExpr, function: &str) {
    let id = expression.id;
    let inner = std::mem::take(expression);
    let budget = IdedExpr { id, expr: Expr::Ident(BUDGET.to_owned()) };
    let call = CallExpr { func_name: function.to_owned(), target: None, args: vec![budget, inner] };
    *expression = IdedExpr { id, expr: Expr::Call(call) };
}

/// What is left of the weight that an evaluation may lift.
#[derive(Debug, Clone)]
struct Budget(Arc<AtomicU64>);

static BUDGET_TYPE: Type = Type::new_unspecified_type("budget");

impl Val for Budget {
    fn get_type(&self) -> &Type {
        Self::cel_type()
    }
    fn cel_type() -> &'static Type {
        &BUDGET_TYPE
    }
    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
        Box::new(self.clone())
    }
    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl StaticVal for Budget {}

impl Budget {
    fn take(&self, weight: u64) -> Result<(), ExecutionError> {
        let left = self.0.load(Ordering::Relaxed).checked_sub(weight);
        let left = left.ok_or_else(|| ExecutionError::function_error(WEIGH, TOO_HEAVY))?;
        self.0.store(left, Ordering::Relaxed);
        Ok(())
    }

    fn weigh(&self, value: &dyn Val) -> Result<(), ExecutionError> {
        if let Some(text) = value.downcast_ref::<CelString<'_>>() {
            return self.take(1 + text.inner().len() as u64 / 16);
        }
        if let Some(bytes) = value.downcast_ref::<CelBytes<'_>>() {
            return self.take(1 + bytes.inner().len() as u64 / 16);
        }
        self.take(1)?;
        if let Some(list) = value.downcast_ref::<CelList<'_>>() {
            return list.inner().iter().try_for_each(|item| self.weigh(item.as_ref()));
        }
        if let Some(map) = value.downcast_ref::<CelMap<'_>>() {
            return map.inner().iter().try_for_each(|(key, value)| {
                self.weigh(key.inner())?;
                self.weigh(value.as_ref())
            });
        }
        Ok(())
    }
}

type Called<'b, 'v> = Result<CowVal<'b, 'v>, ExecutionError>;

/// What a call that was put in is given: the budget, and a value.
fn given<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Result<(Budget, CowVal<'b, 'v>), ExecutionError> {
    let mut args = args.into_iter();
    let (Some(budget), Some(value)) = (args.next(), args.next()) else {
        return Err(ExecutionError::invalid_argument_count(2, 1));
    };
    let budget = budget.downcast_ref::<Budget>().cloned();
    Ok((budget.ok_or_else(ExecutionError::missing_argument_or_target)?, value))
}

fn weigh<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Called<'b, 'v> {
    let (budget, value) = given(args)?;
    budget.weigh(value.as_ref())?;
    Ok(value)
}

/// What a macro goes through: a list, or a map's keys in their order.
fn items<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Called<'b, 'v> {
    let (budget, value) = given(args)?;
    budget.weigh(value.as_ref())?;
    let Some(map) = value.downcast_ref::<CelMap<'_>>() else { return Ok(value) };
    let mut keys: Vec<_> = map.inner().keys().collect();
    keys.sort();
    let keys: Vec<Box<dyn Val + 'v>> = keys.into_iter().map(|key| key.inner().clone_as_boxed()).collect();
    Ok(CowVal::owned(CelList::from(keys)))
}

fn pattern<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Called<'b, 'v> {
    let (budget, value) = given(args)?;
    budget.take(PATTERN_WEIGHT)?;
    Ok(value)
}

/// JSON as expressions see it: a whole number is an `int`, not an `uint`.
struct Plain<'a>(&'a Value);

impl Serialize for Plain<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Null => serializer.serialize_unit(),
            Value::Bool(value) => serializer.serialize_bool(*value),
            Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(number), _) => serializer.serialize_i64(number),
                (None, Some(number)) => serializer.serialize_u64(number),
                (None, None) => serializer.serialize_f64(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(text) => serializer.serialize_str(text),
            Value::Array(items) => {
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                items.iter().try_for_each(|item| list.serialize_element(&Plain(item)))?;
                list.end()
            }
            Value::Object(members) => {
                let mut map = serializer.serialize_map(Some(members.len()))?;
                members.iter().try_for_each(|(key, value)| map.serialize_entry(key, &Plain(value)))?;
                map.end()
            }
        }
    }
}

#[cfg(test)]
mod tests;
