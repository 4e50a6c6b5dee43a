//! A pickle reader that executes nothing: it builds the tree of values described by a pickle.
//!
//! Python's unpickler is a stack machine. Here, calls and objects become nodes of the tree instead of being executed, so
//! anything that a training program saved besides its weights can be skipped. Nodes live in an arena and refer to each
//! other by index, so shared and self-referential values need no special treatment.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read};

/// Index of a node.
pub(super) type Id = usize;

/// A value of a pickle.
#[derive(Debug)]
pub(super) enum Node {
    /// `None`, a float, bytes, or an integer of more than 64 bits, none of which affect weights.
    Other(&'static str),
    Bool(bool),
    Int(i64),
    Str(String),
    Tuple(Vec<Id>),
    /// A list or a set.
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or a function, by module and name.
    Global(String, String),
    /// A persistent identifier, resolved by the file rather than the pickle: a storage.
    Persistent(Id),
    /// The result of a call or an instance of a class, with entries if it is dictionary-like.
    Object {
        class: Id,
        arguments: Id,
        state: Option<Id>,
        entries: Vec<(Id, Id)>,
    },
}

/// The values of one pickle.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    root: Id,
}

impl Tree {
    pub(super) fn root(&self) -> Id {
        self.root
    }

    pub(super) fn node(&self, id: Id) -> &Node {
        &self.nodes[id]
    }

    /// Number of nodes.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// All persistent identifiers.
    pub(super) fn persistent(&self) -> impl Iterator<Item = Id> {
        self.nodes.iter().filter_map(|node| match node {
            Node::Persistent(id) => Some(*id),
            _ => None,
        })
    }

    pub(super) fn string(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Str(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn int(&self, id: Id) -> Option<i64> {
        match self.node(id) {
            Node::Int(value) => Some(*value),
            _ => None,
        }
    }

    pub(super) fn tuple(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// The entries of a dictionary or a dictionary-like object (`OrderedDict`, `defaultdict`).
    pub(super) fn entries(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.node(id) {
            Node::Dict(entries) => Some(entries),
            Node::Object { class, entries, .. }
                if !entries.is_empty() || self.is_global(*class, "collections", "OrderedDict") =>
            {
                Some(entries)
            }
            _ => None,
        }
    }

    /// The value of a dictionary for a key.
    pub(super) fn get(&self, id: Id, key: &str) -> Option<Id> {
        let mut entries = self.entries(id)?.iter().rev();
        let found = entries.find(|(name, _)| self.string(*name) == Some(key));
        found.map(|(_, value)| *value)
    }

    pub(super) fn global(&self, id: Id) -> Option<(&str, &str)> {
        match self.node(id) {
            Node::Global(module, name) => Some((module, name)),
            _ => None,
        }
    }

    fn is_global(&self, id: Id, module: &str, name: &str) -> bool {
        self.global(id) == Some((module, name))
    }
}

/// Reads one pickle and leaves `reader` at its end.
pub(super) fn read(reader: &mut impl Read) -> io::Result<Tree> {
    let mut machine = Machine {
        reader,
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    let root = machine.run()?;
    Ok(Tree {
        nodes: machine.nodes,
        root,
    })
}

struct Machine<'a, R> {
    reader: &'a mut R,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    /// The length of the stack at each open mark.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, text.into())
}

impl<R: Read> Machine<'_, R> {
    fn run(&mut self) -> io::Result<Id> {
        loop {
            let [opcode] = self.bytes()?;
            if opcode == b'.' {
                return self.pop();
            }
            let known = self.scalar(opcode)?
                || self.container(opcode)?
                || self.stack_or_memo(opcode)?
                || self.object(opcode)?;
            if !known {
                return Err(invalid(format!("unknown pickle opcode {opcode:#04x}")));
            }
        }
    }

    /// Numbers, strings and constants.
    fn scalar(&mut self, opcode: u8) -> io::Result<bool> {
        let node = match opcode {
            b'N' => Node::Other("None"),
            0x88 => Node::Bool(true),
            0x89 => Node::Bool(false),
            b'I' => match self.line()?.as_str() {
                "00" => Node::Bool(false),
                "01" => Node::Bool(true),
                text => int(text),
            },
            b'L' => int(self.line()?.trim_end_matches('L')),
            b'J' => Node::Int(i64::from(i32::from_le_bytes(self.bytes()?))),
            b'K' => Node::Int(i64::from(u8::from_le_bytes(self.bytes()?))),
            b'M' => Node::Int(i64::from(u16::from_le_bytes(self.bytes()?))),
            0x8a => {
                let length = self.length::<1>()?;
                long(&self.take(length)?)
            }
            0x8b => {
                let length = self.length::<4>()?;
                long(&self.take(length)?)
            }
            b'F' => {
                self.line()?;
                Node::Other("float")
            }
            b'G' => {
                self.bytes::<8>()?;
                Node::Other("float")
            }
            b'V' => Node::Str(self.line()?),
            b'S' => Node::Str(self.line()?.trim_matches(['\'', '"']).to_owned()),
            0x8c | b'U' => self.text::<1>()?,
            b'X' | b'T' => self.text::<4>()?,
            0x8d => self.text::<8>()?,
            b'C' => self.binary::<1>()?,
            b'B' => self.binary::<4>()?,
            0x8e | 0x96 => self.binary::<8>()?,
            _ => return Ok(false),
        };
        self.push(node);
        Ok(true)
    }

    /// Tuples, lists, sets and dictionaries.
    fn container(&mut self, opcode: u8) -> io::Result<bool> {
        match opcode {
            b'(' => self.marks.push(self.stack.len()),
            b')' => self.push(Node::Tuple(Vec::new())),
            b']' | 0x8f => self.push(Node::List(Vec::new())),
            b'}' => self.push(Node::Dict(Vec::new())),
            0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let from = self.stack.len().checked_sub(count);
                let from = from.ok_or_else(|| invalid("a tuple without its items"))?;
                let items = self.stack.split_off(from);
                self.push(Node::Tuple(items));
            }
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Node::Tuple(items));
            }
            b'l' | 0x91 => {
                let items = self.pop_to_mark()?;
                self.push(Node::List(items));
            }
            b'd' => {
                let items = self.pop_to_mark()?;
                self.push(Node::Dict(pairs(&items)?));
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_to_mark()?;
                self.append(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.insert(vec![(key, value)])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.insert(pairs(&items)?)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn stack_or_memo(&mut self, opcode: u8) -> io::Result<bool> {
        match opcode {
            // Protocol versions and frames are not needed.
            0x80 => drop(self.bytes::<1>()?),
            0x95 => drop(self.bytes::<8>()?),
            b'0' => match self.marks.last() {
                Some(&mark) if mark == self.stack.len() => drop(self.marks.pop()),
                _ => drop(self.pop()?),
            },
            b'1' => drop(self.pop_to_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'g' => {
                let index = self.index()?;
                self.recall(index)?;
            }
            b'h' => {
                let index = self.length::<1>()?;
                self.recall(index)?;
            }
            b'j' => {
                let index = self.length::<4>()?;
                self.recall(index)?;
            }
            b'p' => {
                let index = self.index()?;
                self.memorise(index)?;
            }
            b'q' => {
                let index = self.length::<1>()?;
                self.memorise(index)?;
            }
            b'r' => {
                let index = self.length::<4>()?;
                self.memorise(index)?;
            }
            0x94 => self.memorise(self.memo.len() as u64)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Classes, calls, instances and persistent identifiers.
    fn object(&mut self, opcode: u8) -> io::Result<bool> {
        match opcode {
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Node::Global(module, name));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (&self.nodes[module], &self.nodes[name]) {
                    (Node::Str(module), Node::Str(name)) => {
                        let global = Node::Global(module.clone(), name.clone());
                        self.push(global);
                    }
                    _ => return Err(invalid("a class that is not named by two strings")),
                }
            }
            b'R' | 0x81 => {
                let (arguments, class) = (self.pop()?, self.pop()?);
                self.call(class, arguments);
            }
            0x92 => {
                let (_keywords, arguments, class) = (self.pop()?, self.pop()?, self.pop()?);
                self.call(class, arguments);
            }
            b'b' => {
                let state = self.pop()?;
                let object = self.top()?;
                if let Node::Object { state: place, .. } = &mut self.nodes[object] {
                    *place = Some(state);
                }
            }
            b'P' => {
                let text = self.line()?;
                self.push(Node::Str(text));
                let id = self.pop()?;
                self.push(Node::Persistent(id));
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Node::Persistent(id));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Pushes the result of a call. Protocols before 2 pass the entries of an `OrderedDict` as arguments:
    /// `OrderedDict([(key, value), …])`.
    fn call(&mut self, class: Id, arguments: Id) {
        let pairs = match &self.nodes[arguments] {
            Node::Tuple(arguments) => match arguments.first().map(|&first| &self.nodes[first]) {
                Some(Node::List(pairs)) => pairs.as_slice(),
                _ => &[],
            },
            _ => &[],
        };
        let entries = pairs.iter().filter_map(|&pair| match &self.nodes[pair] {
            Node::Tuple(pair) | Node::List(pair) => Some((*pair.first()?, *pair.get(1)?)),
            _ => None,
        });
        let is_dict = matches!(&self.nodes[class], Node::Global(module, name)
            if module == "collections" && name == "OrderedDict");
        let entries = match is_dict {
            true => entries.collect(),
            false => Vec::new(),
        };
        self.push(Node::Object {
            class,
            arguments,
            state: None,
            entries,
        });
    }

    fn append(&mut self, items: Vec<Id>) -> io::Result<()> {
        let top = self.top()?;
        match &mut self.nodes[top] {
            Node::List(list) => list.extend(items),
            // A list-like object from a training program.
            Node::Object { .. } => {}
            _ => return Err(invalid("items appended to a value that is not a list")),
        }
        Ok(())
    }

    fn insert(&mut self, new: Vec<(Id, Id)>) -> io::Result<()> {
        let top = self.top()?;
        match &mut self.nodes[top] {
            Node::Dict(entries) | Node::Object { entries, .. } => entries.extend(new),
            _ => {
                return Err(invalid(
                    "entries inserted into a value that is not a dictionary",
                ));
            }
        }
        Ok(())
    }

    fn push(&mut self, node: Node) {
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
    }

    fn pop(&mut self) -> io::Result<Id> {
        let below = self.marks.last().copied().unwrap_or(0);
        match self.stack.len() > below {
            true => Ok(self.stack.pop().unwrap_or_default()),
            false => Err(invalid("the pickle's stack is empty")),
        }
    }

    fn top(&self) -> io::Result<Id> {
        let top = self.stack.last().copied();
        top.ok_or_else(|| invalid("the pickle's stack is empty"))
    }

    fn pop_to_mark(&mut self) -> io::Result<Vec<Id>> {
        let mark = self.marks.pop().ok_or_else(|| invalid("a missing mark"))?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn memorise(&mut self, index: u64) -> io::Result<()> {
        let top = self.top()?;
        let index = u32::try_from(index).map_err(|_| invalid("a memo index out of range"))?;
        self.memo.insert(index, top);
        Ok(())
    }

    fn recall(&mut self, index: u64) -> io::Result<()> {
        let found = u32::try_from(index).ok().and_then(|i| self.memo.get(&i));
        let found = found.ok_or_else(|| invalid(format!("no memo entry {index}")))?;
        self.stack.push(*found);
        Ok(())
    }

    fn index(&mut self) -> io::Result<u64> {
        let line = self.line()?;
        line.parse()
            .map_err(|_| invalid(format!("memo index {line:?}")))
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads a little-endian number of `N` bytes.
    fn length<const N: usize>(&mut self) -> io::Result<u64> {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(&self.bytes::<N>()?);
        Ok(u64::from_le_bytes(wide))
    }

    /// Reads bytes of a length that the pickle claims, allocating only as they arrive.
    fn take(&mut self, length: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = self.reader.by_ref().take(length).read_to_end(&mut bytes)?;
        match read as u64 == length {
            true => Ok(bytes),
            false => Err(ErrorKind::UnexpectedEof.into()),
        }
    }

    fn text<const N: usize>(&mut self) -> io::Result<Node> {
        let length = self.length::<N>()?;
        let bytes = self.take(length)?;
        // Python encodes lone surrogates, which are invalid UTF-8; no tensor name contains them.
        Ok(Node::Str(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn binary<const N: usize>(&mut self) -> io::Result<Node> {
        let length = self.length::<N>()?;
        self.take(length)?;
        Ok(Node::Other("bytes"))
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        loop {
            match self.bytes()? {
                [b'\n'] => return Ok(String::from_utf8_lossy(&line).into_owned()),
                [byte] => line.push(byte),
            }
        }
    }
}

fn pairs(items: &[Id]) -> io::Result<Vec<(Id, Id)>> {
    let (pairs, rest) = items.as_chunks::<2>();
    match rest {
        [] => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
        _ => Err(invalid("a dictionary with a key without a value")),
    }
}

fn int(text: &str) -> Node {
    text.trim()
        .parse()
        .map_or(Node::Other("long integer"), Node::Int)
}

/// Parses a little-endian two's complement number.
fn long(bytes: &[u8]) -> Node {
    let negative = bytes.last().is_some_and(|last| last & 0x80 != 0);
    let mut wide = [if negative { 0xff } else { 0 }; 8];
    match wide.get_mut(..bytes.len()) {
        Some(low) => {
            low.copy_from_slice(bytes);
            Node::Int(i64::from_le_bytes(wide))
        }
        None => Node::Other("long integer"),
    }
}
