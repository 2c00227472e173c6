//! Compiling an expression: its limits, its names, and the budget that its evaluation draws on.

use super::{Compiled, FilterError, bounded, budget};
use cel::{
    Context, Env, ExecutionError, IdedExpr, Value,
    common::{
        ast::{CallExpr, EntryExpr, Expr, LiteralValue, operators},
        functions::Function,
        types::DYN_TYPE,
    },
};
use std::{collections::BTreeSet, sync::Arc};

/// Deepest nesting of an expression. A chain of `+` or of `.field` is as deep as it is long; `&&` and `||` are not.
pub(super) const DEPTH_MAX: usize = 100;
/// Variables of an expression.
const VARIABLES: [&str; 6] = ["id", "source", "type", "subject", "time", "data"];
/// Names that no expression can spell.
const WEIGH: &str = "@weigh";
const TEXT: &str = "@text";
const PATTERN: &str = "@pattern";
/// Compiles an expression; needs a large stack.
pub(super) fn compile(source: &str) -> Result<Compiled, FilterError> {
    let mut env = Env::stdlib();
    let charges =
        [(WEIGH, budget::charge_value as Function), (TEXT, budget::charge_text), (PATTERN, budget::charge_pattern)];
    for (name, function) in charges {
        env.add_overload(name, name, vec![DYN_TYPE], function).expect("no function is called so yet");
    }
    let program = env.compile(source).map_err(|errors| {
        let Some(error) = errors.errors.first() else { return FilterError::Breakdown };
        if error.msg.contains("Recursion limit") {
            return FilterError::TooDeep;
        }
        let at = |position: isize| usize::try_from(position).unwrap_or(0).max(1);
        FilterError::Syntax { line: at(error.pos.0), column: at(error.pos.1), message: bounded(&error.msg) }
    })?;
    let mut expression = program.expression().clone();
    if depth(&expression) > DEPTH_MAX {
        return Err(FilterError::TooDeep);
    }
    let mut names = Names::new();
    names.check(&expression)?;
    meter(&mut expression, &names.spaces);
    Ok(Compiled { source: source.to_owned(), expression, env: Arc::new(env), uses: names.uses })
}

/// The parts of an expression.
fn parts(expression: &Expr) -> Vec<&IdedExpr> {
    match expression {
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => Vec::new(),
        Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).collect(),
        Expr::Select(select) => vec![&select.operand],
        Expr::List(list) => list.elements.iter().collect(),
        Expr::Map(map) => map.entries.iter().flat_map(|entry| entry_parts(&entry.expr)).collect(),
        Expr::Struct(made) => made.entries.iter().flat_map(|entry| entry_parts(&entry.expr)).collect(),
        Expr::Comprehension(it) => {
            vec![&it.iter_range, &it.accu_init, &it.loop_cond, &it.loop_step, &it.result]
        }
    }
}

fn entry_parts(entry: &EntryExpr) -> Vec<&IdedExpr> {
    match entry {
        EntryExpr::StructField(field) => vec![&field.value],
        EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
    }
}

/// How deep an expression is nested; without recursion.
fn depth(expression: &IdedExpr) -> usize {
    let (mut deepest, mut open) = (0, vec![(expression, 1)]);
    while let Some((expression, depth)) = open.pop() {
        deepest = deepest.max(depth);
        open.extend(parts(&expression.expr).into_iter().map(|part| (part, depth + 1)));
    }
    deepest
}

/// Makes all that takes time in proportion to a value draw on the budget.
fn meter(expression: &mut IdedExpr, spaces: &BTreeSet<String>) {
    match &mut expression.expr {
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => {}
        Expr::Call(call) => {
            call.target.as_deref_mut().into_iter().chain(&mut call.args).for_each(|part| meter(part, spaces));
            let pattern = (call.func_name == "matches").then(|| call.args.pop()).flatten();
            match call.func_name.as_str() {
                // They look at no more than a bool, or hand on what they are given.
                operators::CONDITIONAL
                | operators::LOGICAL_AND
                | operators::LOGICAL_OR
                | operators::LOGICAL_NOT
                | operators::NOT_STRICTLY_FALSE
                | operators::INDEX => {}
                _ => {
                    // The first part of a function's name is no value.
                    let value = |target: &&mut IdedExpr| root(&target.expr).is_none_or(|name| !spaces.contains(name));
                    let target = call.target.as_deref_mut().filter(value);
                    let function = if pattern.is_some() { TEXT } else { WEIGH };
                    target.into_iter().chain(&mut call.args).for_each(|part| charge(part, function));
                }
            }
            if let Some(mut pattern) = pattern {
                charge(&mut pattern, PATTERN);
                call.args.push(pattern);
            }
        }
        Expr::Select(select) => meter(&mut select.operand, spaces),
        Expr::List(list) => {
            for item in &mut list.elements {
                meter(item, spaces);
                charge(item, WEIGH);
            }
        }
        Expr::Map(map) => map.entries.iter_mut().for_each(|entry| meter_entry(&mut entry.expr, spaces)),
        Expr::Struct(made) => made.entries.iter_mut().for_each(|entry| meter_entry(&mut entry.expr, spaces)),
        Expr::Comprehension(it) => {
            for part in [&mut it.iter_range, &mut it.accu_init, &mut it.loop_cond, &mut it.loop_step, &mut it.result] {
                meter(part, spaces);
            }
            charge(&mut it.iter_range, WEIGH);
        }
    }
}

fn meter_entry(entry: &mut EntryExpr, spaces: &BTreeSet<String>) {
    let parts = match entry {
        EntryExpr::StructField(field) => vec![&mut field.value],
        EntryExpr::MapEntry(entry) => vec![&mut entry.key, &mut entry.value],
    };
    for part in parts {
        meter(part, spaces);
        charge(part, WEIGH);
    }
}

/// Puts a call of `function` around an expression, unless its value is small or was weighed in parts. The evaluator
/// knows the shapes of its own loops by the names that begin with `@`, which stay as they are.
fn charge(part: &mut IdedExpr, function: &str) {
    match &part.expr {
        Expr::Literal(_) | Expr::List(_) | Expr::Map(_) if function == WEIGH => return,
        Expr::Ident(name) if name.starts_with('@') => return,
        _ => {}
    }
    let call = CallExpr { func_name: function.to_owned(), target: None, args: vec![std::mem::take(part)] };
    part.expr = Expr::Call(call);
}

/// The first of a chain of names `a.b.c`.
fn root(expression: &Expr) -> Option<&str> {
    match expression {
        Expr::Ident(name) => Some(name),
        Expr::Select(select) if !select.test => root(&select.operand.expr),
        _ => None,
    }
}

/// Looks for names that nothing has: CEL would only find them cell by cell.
struct Names {
    env: Arc<Env>,
    uses: BTreeSet<&'static str>,
    /// First parts of the names of functions, as in `optional.of`.
    spaces: BTreeSet<String>,
    /// Variables of the loops around.
    bound: Vec<String>,
}

impl Names {
    fn new() -> Self {
        let env = Arc::new(Env::stdlib());
        Self { env, uses: BTreeSet::new(), spaces: BTreeSet::new(), bound: Vec::new() }
    }

    fn check(&mut self, expression: &IdedExpr) -> Result<(), FilterError> {
        match &expression.expr {
            Expr::Ident(_) | Expr::Select(_) if self.root(&expression.expr).is_some() => {
                // The root of a chain of names is no variable: then all of it has to be the name of a type.
                match self.evaluate(expression) {
                    Some(name) => Err(FilterError::Unknown { name }),
                    None => Ok(()),
                }
            }
            Expr::Ident(name) => {
                if !self.bound.contains(name)
                    && let Some(variable) = VARIABLES.iter().find(|variable| *variable == name)
                {
                    self.uses.insert(variable);
                }
                Ok(())
            }
            Expr::Call(call) => {
                self.check_function(call)?;
                if let Some(target) = &call.target {
                    match self.root(&target.expr) {
                        Some(space) => _ = self.spaces.insert(space.to_owned()),
                        None => self.check(target)?,
                    }
                }
                call.args.iter().try_for_each(|argument| self.check(argument))
            }
            Expr::Comprehension(it) => {
                self.check(&it.iter_range)?;
                self.check(&it.accu_init)?;
                let outside = self.bound.len();
                self.bound.extend([it.iter_var.clone(), it.accu_var.clone()].into_iter().chain(it.iter_var2.clone()));
                let inside = [&it.loop_cond, &it.loop_step, &it.result];
                inside.into_iter().try_for_each(|part| self.check(part))?;
                self.bound.truncate(outside);
                Ok(())
            }
            other => parts(other).into_iter().try_for_each(|part| self.check(part)),
        }
    }

    /// The first of a chain of names `a.b.c`, if it is no variable.
    fn root<'e>(&self, expression: &'e Expr) -> Option<&'e str> {
        root(expression).filter(|name| !VARIABLES.contains(name) && !self.bound.iter().any(|bound| bound == name))
    }

    /// Calls the function with nulls, to see whether there is one of the name.
    fn check_function(&self, call: &CallExpr) -> Result<(), FilterError> {
        let null = || IdedExpr { id: 0, expr: Expr::Literal(LiteralValue::Null) };
        let target = call.target.as_ref().map(|target| match self.root(&target.expr) {
            // Perhaps the first part of the function's name, as in optional.of(1).
            Some(_) => target.clone(),
            None => Box::new(null()),
        });
        let args = call.args.iter().map(|_| null()).collect();
        let call = CallExpr { func_name: call.func_name.clone(), target, args };
        match self.evaluate(&IdedExpr { id: 0, expr: Expr::Call(call) }) {
            Some(name) => Err(FilterError::Unknown { name }),
            None => Ok(()),
        }
    }

    /// Evaluates an expression without variables, and gives the name that it lacks.
    fn evaluate(&self, expression: &IdedExpr) -> Option<String> {
        let context = Context::with_env(self.env.clone());
        match Value::resolve_val(expression, &context) {
            Err(ExecutionError::UndeclaredReference(name)) => Some(name.to_string()),
            _ => None,
        }
    }
}
