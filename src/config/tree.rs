//! A config as it was written, before it means anything: the values of the file and of the environment in one tree, each
//! with the place where it was written.
//!
//! A value's place is a span of the file's text. Those of environment variables lie behind its end, one byte each, so that
//! an error of the parser that carries a span says by itself which of the two it is about.

use std::{borrow::Cow, ops::Range};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// An environment variable that sets a key.
#[derive(Clone, Debug)]
pub(super) struct Override {
    /// Its name.
    pub(super) variable: String,
    /// The key.
    pub(super) path: Vec<String>,
    /// Its value.
    pub(super) text: String,
    /// Read the value as TOML; as plain text otherwise.
    pub(super) as_toml: bool,
}

impl Override {
    /// The value, read as TOML, when that is anything but text.
    pub(super) fn toml(&self) -> Option<DeValue<'_>> {
        let value = DeValue::parse(&self.text).ok()?.into_inner();
        if value.is_str() { None } else { Some(value) }
    }
}

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A line of the file, from 1.
    Line(usize),
    /// The override of this number.
    Override(usize),
    /// Somewhere in the file.
    File,
}

/// An override cannot be laid over the file.
#[derive(Debug)]
pub(super) struct Misfit {
    /// Its number.
    pub(super) which: usize,
    /// The key above it that holds a plain value.
    pub(super) plain: String,
}

/// The tree.
#[derive(Clone)]
pub(super) struct Tree<'a> {
    text: &'a str,
    root: Spanned<DeTable<'a>>,
}

impl<'a> Tree<'a> {
    /// Reads a file.
    pub(super) fn parse(text: &'a str) -> Result<Self, toml::de::Error> {
        let mut root = DeTable::parse(text)?;
        times_are_text(root.get_mut());
        Ok(Self { text, root })
    }

    /// Lays overrides over it, in order.
    pub(super) fn lay(&mut self, overrides: &'a [Override]) -> Result<(), Misfit> {
        for (which, one) in overrides.iter().enumerate() {
            let at = self.text.len() + 1 + which;
            let span = at..at + 1;
            let mut value = match one.toml() {
                Some(value) if one.as_toml => value,
                _ => DeValue::String(one.text.as_str().into()),
            };
            move_to(&mut value, &span);
            let Some((last, tables)) = one.path.split_last() else { continue };
            let mut table = self.root.get_mut();
            for (depth, key) in tables.iter().enumerate() {
                let entry = table
                    .entry(Spanned::new(span.clone(), Cow::Borrowed(key.as_str())))
                    .or_insert_with(|| Spanned::new(span.clone(), DeValue::Table(DeTable::new())));
                table = match entry.get_mut() {
                    DeValue::Table(table) => table,
                    _ => return Err(Misfit { which, plain: one.path[..=depth].join(".") }),
                };
            }
            table.remove(last.as_str());
            table.insert(Spanned::new(span.clone(), Cow::Borrowed(last.as_str())), Spanned::new(span, value));
        }
        Ok(())
    }

    /// For the parser.
    pub(super) fn root(self) -> Spanned<DeTable<'a>> {
        self.root
    }

    /// The value of a key.
    pub(super) fn get(&self, path: &[&str]) -> Option<&DeValue<'a>> {
        let (first, rest) = path.split_first()?;
        let mut value = self.root.get_ref().get(*first)?;
        for key in rest {
            value = value.get_ref().as_table()?.get(*key)?;
        }
        Some(value.get_ref())
    }

    /// Sets the text of a key whose table is there, or `store`'s when it is not.
    pub(super) fn set_text(&mut self, path: &[&str], text: String) {
        let Some((last, tables)) = path.split_last() else { return };
        let mut table = self.root.get_mut();
        for key in tables {
            let entry = table.entry(Spanned::new(0..0, Cow::Owned((*key).to_owned())));
            match entry.or_insert_with(|| Spanned::new(0..0, DeValue::Table(DeTable::new()))).get_mut() {
                DeValue::Table(inner) => table = inner,
                _ => return,
            }
        }
        let span = table.get(*last).map_or(0..0, Spanned::span);
        if let Some(value) = table.get_mut(*last) {
            *value = Spanned::new(span, DeValue::String(text.into()));
        } else {
            let key = Spanned::new(span.clone(), Cow::Owned((*last).to_owned()));
            table.insert(key, Spanned::new(span, DeValue::String(text.into())));
        }
    }

    /// Names of the tables in a table.
    pub(super) fn tables_in(&self, key: &str) -> Vec<String> {
        let table = self.get(&[key]).and_then(DeValue::as_table);
        let names = table.into_iter().flatten().map(|(name, _)| name.get_ref().clone().into_owned());
        names.collect()
    }

    /// The place of a span.
    pub(super) fn place(&self, span: &Range<usize>) -> Place {
        if span.start > self.text.len() {
            return Place::Override(span.start - self.text.len() - 1);
        }
        if *span == (0..0) {
            return Place::File;
        }
        let before = &self.text.as_bytes()[..span.start];
        Place::Line(1 + before.iter().filter(|byte| **byte == b'\n').count())
    }

    /// The place of a key, or of the nearest one above it that was written.
    pub(super) fn place_of(&self, path: &[&str]) -> Place {
        let mut place = Place::File;
        let mut table = self.root.get_ref();
        for key in path {
            let Some((written, value)) = table.get_key_value(*key) else { break };
            if written.span() != (0..0) {
                place = self.place(&written.span());
            }
            let DeValue::Table(inner) = value.get_ref() else { break };
            table = inner;
        }
        place
    }

    /// The key that a span belongs to: the deepest one that it is, or is written in.
    pub(super) fn path_of(&self, span: &Range<usize>) -> Vec<String> {
        let mut best = Vec::new();
        let mut path = Vec::new();
        deepest(self.root.get_ref(), span, &mut path, &mut best);
        best
    }
}

fn deepest(table: &DeTable<'_>, span: &Range<usize>, path: &mut Vec<String>, best: &mut Vec<String>) {
    for (key, value) in table {
        path.push(key.get_ref().clone().into_owned());
        let within = |outer: Range<usize>| outer.start <= span.start && span.end <= outer.end && !outer.is_empty();
        if (within(key.span()) || within(value.span())) && path.len() > best.len() {
            best.clone_from(path);
        }
        if let DeValue::Table(inner) = value.get_ref() {
            deepest(inner, span, path, best);
        }
        path.pop();
    }
}

/// A time may be written without quotes; who reads it need not know.
fn times_are_text(table: &mut DeTable<'_>) {
    for (_, value) in table.iter_mut() {
        match value.get_mut() {
            DeValue::Table(inner) => times_are_text(inner),
            DeValue::Datetime(time) => {
                let text = time.to_string();
                *value.get_mut() = DeValue::String(text.into());
            }
            _ => {}
        }
    }
}

/// Gives all parts of a value one span.
fn move_to(value: &mut DeValue<'_>, span: &Range<usize>) {
    match value {
        DeValue::Table(table) => {
            let entries = std::mem::take(table);
            for (key, mut value) in entries {
                move_to(value.get_mut(), span);
                let key = Spanned::new(span.clone(), key.into_inner());
                table.insert(key, Spanned::new(span.clone(), value.into_inner()));
            }
        }
        DeValue::Array(array) => {
            for item in array.iter_mut() {
                move_to(item.get_mut(), span);
                let inner = std::mem::replace(item.get_mut(), DeValue::Boolean(false));
                *item = Spanned::new(span.clone(), inner);
            }
        }
        _ => {}
    }
}
