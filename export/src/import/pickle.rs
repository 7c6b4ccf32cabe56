//! Reads the pickle in a file of `torch.save`: a dictionary of tensors, and nothing else.
//!
//! A pickle is a program for a stack machine that may call anything it can name. This one knows the
//! few instructions and the few names with which PyTorch writes tensors; whatever else is met is an
//! error, and nothing is ever called.

#[cfg(test)]
pub(super) mod tests;

use std::{collections::HashMap, rc::Rc};

use thiserror::Error;

use crate::onnx::proto::DataType;

/// A tensor as the pickle describes it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PickledTensor {
    pub(super) storage: Storage,
    /// Elements of the storage before the tensor's first.
    pub(super) offset: u64,
    pub(super) shape: Vec<u64>,
    /// Elements from one index of each axis to the next.
    pub(super) strides: Vec<u64>,
}

/// The buffer in which a tensor lies.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Storage {
    pub(super) element: DataType,
    /// Name of its file within the archive.
    pub(super) key: Rc<str>,
    /// Number of elements.
    pub(super) count: u64,
}

/// Why a pickle is refused.
#[derive(Debug, Error, PartialEq)]
pub enum PickleError {
    #[error("the pickle ends within an instruction")]
    Cut,
    #[error(
        "pickle instruction {found:#04x} at byte {at} is none that a dictionary of tensors needs"
    )]
    Instruction { found: u8, at: usize },
    #[error("the pickle has protocol {found}; 2 is what PyTorch writes")]
    Protocol { found: u8 },
    #[error("the pickle names {found}, which is nothing that a dictionary of tensors needs")]
    Global { found: String },
    #[error("the pickle at byte {at} lacks {expected}")]
    Value { at: usize, expected: &'static str },
    #[error("the pickle has more than {max} {what}")]
    TooMany { what: &'static str, max: usize },
    #[error("the pickle's entry {name:?} is not a tensor")]
    NotATensor { name: String },
    #[error("the pickle's entry {name:?} is there twice")]
    Twice { name: String },
}

/// Most values on the stack: a model's tensors are a few hundred.
const STACK_MAX: usize = 1 << 16;
/// Most axes of a tensor; ours have four at most.
const AXES_MAX: usize = 8;
/// Most values that are remembered to be used again.
const MEMO_MAX: usize = 1 << 18;
/// Most tuples, lists and dictionaries.
const OBJECTS_MAX: usize = 1 << 18;

/// The tensors in `bytes`, by name.
///
/// # Errors
/// See [`PickleError`].
pub(super) fn read(bytes: &[u8]) -> Result<Vec<(String, PickledTensor)>, PickleError> {
    let mut machine = Machine { bytes, ..Machine::default() };
    let result = machine.run()?;
    let Value::Object(idx) = result else { return Err(machine.lacks("a dictionary at its end")) };
    let Object::Dict(entries) = &machine.objects[idx] else {
        return Err(machine.lacks("a dictionary at its end"));
    };
    let mut tensors: Vec<(String, PickledTensor)> = Vec::with_capacity(entries.len());
    for (key, value) in entries {
        let Value::Text(name) = key else { return Err(machine.lacks("text as a name")) };
        let name = name.to_string();
        match value {
            Value::Tensor(tensor) => tensors.push((name, (**tensor).clone())),
            _ => return Err(PickleError::NotATensor { name }),
        }
    }
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    match tensors.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(PickleError::Twice { name: pair[0].0.clone() }),
        None => Ok(tensors),
    }
}

/// What lies on the stack. Cheap to clone, whatever the pickle repeats; and without a value inside
/// another, so that none is too deep to be dropped.
#[derive(Clone, Debug)]
enum Value {
    None,
    Bool,
    Int(i64),
    Text(Rc<str>),
    Global(Global),
    Storage(Rc<Storage>),
    Tensor(Rc<PickledTensor>),
    /// Index into the machine's objects.
    Object(usize),
}

/// The names that are known.
#[derive(Clone, Copy, Debug)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    StorageOf(DataType),
}

/// What holds other values.
#[derive(Debug)]
enum Object {
    Tuple(Vec<Value>),
    Dict(Vec<(Value, Value)>),
}

#[derive(Debug, Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Heights of the stack at which a group of values begins.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    objects: Vec<Object>,
}

impl Machine<'_> {
    /// Runs to the end; what is left on the stack is the result.
    fn run(&mut self) -> Result<Value, PickleError> {
        loop {
            let at = self.at;
            match self.u8()? {
                0x80 => match self.u8()? {
                    2 => {}
                    found => return Err(PickleError::Protocol { found }),
                },
                b'.' => return self.pop(),
                b'(' => {
                    self.marks.push(self.stack.len());
                    at_most("marks", self.marks.len(), STACK_MAX)?;
                }
                b'q' => {
                    let key = self.u8()?.into();
                    self.remember(key)?;
                }
                b'r' => {
                    let key = self.u32()?;
                    self.remember(key)?;
                }
                b'R' => self.reduce()?,
                b'b' => self.build()?,
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.top_dict()?.push((key, value));
                }
                b'u' => {
                    let items = self.pop_group()?;
                    if !items.len().is_multiple_of(2) {
                        return Err(self.lacks("a value for each key"));
                    }
                    let pairs = items.chunks_exact(2).map(|it| (it[0].clone(), it[1].clone()));
                    self.top_dict()?.extend(pairs);
                }
                other => {
                    let value = self.value(other, at)?;
                    self.push(value)?;
                }
            }
        }
    }

    /// The value that an instruction makes, of what follows it or of what lies on the stack.
    fn value(&mut self, instruction: u8, at: usize) -> Result<Value, PickleError> {
        Ok(match instruction {
            b'N' => Value::None,
            0x88 | 0x89 => Value::Bool,
            b'K' => Value::Int(self.u8()?.into()),
            b'M' => Value::Int(u16::from_le_bytes(self.array()?).into()),
            b'J' => Value::Int(i32::from_le_bytes(self.array()?).into()),
            0x8a => Value::Int(self.long()?),
            b'X' => {
                let n_bytes = self.u32()? as usize;
                Value::Text(self.text(n_bytes)?.into())
            }
            b'h' => {
                let key = self.u8()?.into();
                self.recall(key)?
            }
            b'j' => {
                let key = self.u32()?;
                self.recall(key)?
            }
            b'c' => Value::Global(self.global()?),
            b'Q' => Value::Storage(Rc::new(self.storage()?)),
            b'}' => self.object(Object::Dict(Vec::new()))?,
            b')' => self.object(Object::Tuple(Vec::new()))?,
            b't' => {
                let items = self.pop_group()?;
                self.object(Object::Tuple(items))?
            }
            0x85..=0x87 => {
                let n_items = usize::from(instruction - 0x84);
                if self.stack.len() < self.floor() + n_items {
                    return Err(self.lacks("the items of a tuple"));
                }
                let items = self.stack.split_off(self.stack.len() - n_items);
                self.object(Object::Tuple(items))?
            }
            found => return Err(PickleError::Instruction { found, at }),
        })
    }

    /// "Calls" what lies below a tuple of arguments.
    fn reduce(&mut self) -> Result<(), PickleError> {
        let arguments = self.pop_tuple()?;
        let Value::Global(callee) = self.pop()? else {
            return Err(self.lacks("something to call"));
        };
        let value = match (callee, &*arguments) {
            (Global::OrderedDict, []) => self.object(Object::Dict(Vec::new()))?,
            // The data, whether it wants a gradient, hooks of the backward pass.
            (Global::RebuildParameter, [data @ Value::Tensor(_), Value::Bool, _]) => data.clone(),
            (
                Global::RebuildTensor,
                [Value::Storage(storage), Value::Int(offset), shape, strides, Value::Bool, _],
            ) => {
                let offset = u64::try_from(*offset).map_err(|_| self.lacks("an offset"))?;
                let (shape, strides) = (self.extents(shape)?, self.extents(strides)?);
                if shape.len() != strides.len() {
                    return Err(self.lacks("a stride for each axis"));
                }
                let storage = (**storage).clone();
                Value::Tensor(Rc::new(PickledTensor { storage, offset, shape, strides }))
            }
            _ => return Err(self.lacks("the arguments of what is called")),
        };
        self.push(value)
    }

    /// Drops the attributes of a dictionary: PyTorch notes versions of modules there.
    fn build(&mut self) -> Result<(), PickleError> {
        self.pop()?;
        self.top_dict().map(drop)
    }

    /// A buffer, from `("storage", class, key, device, count)`.
    fn storage(&mut self) -> Result<Storage, PickleError> {
        let items = self.pop_tuple()?;
        match &*items {
            [
                Value::Text(kind),
                Value::Global(Global::StorageOf(element)),
                Value::Text(key),
                Value::Text(_),
                Value::Int(count),
            ] if &**kind == "storage" => {
                let count = u64::try_from(*count).map_err(|_| self.lacks("a buffer's size"))?;
                Ok(Storage { element: *element, key: key.clone(), count })
            }
            _ => Err(self.lacks("a buffer")),
        }
    }

    fn global(&mut self) -> Result<Global, PickleError> {
        let (module, name) = (self.line()?, self.line()?);
        match (&*module, &*name) {
            ("collections", "OrderedDict") => Ok(Global::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Ok(Global::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Ok(Global::RebuildParameter),
            ("torch", "FloatStorage") => Ok(Global::StorageOf(DataType::F32)),
            ("torch", "HalfStorage") => Ok(Global::StorageOf(DataType::F16)),
            ("torch", "BFloat16Storage") => Ok(Global::StorageOf(DataType::BF16)),
            _ => Err(PickleError::Global { found: format!("{module}.{name}") }),
        }
    }

    fn extents(&self, value: &Value) -> Result<Vec<u64>, PickleError> {
        let Value::Object(idx) = value else { return Err(self.lacks("a shape")) };
        let Object::Tuple(items) = &self.objects[*idx] else { return Err(self.lacks("a shape")) };
        at_most("axes in a tensor", items.len(), AXES_MAX)?;
        let extent = |it: &Value| match it {
            Value::Int(it) => u64::try_from(*it).ok(),
            _ => None,
        };
        items.iter().map(extent).collect::<Option<_>>().ok_or_else(|| self.lacks("a shape"))
    }
}

/// The stack and what is remembered.
impl Machine<'_> {
    fn push(&mut self, value: Value) -> Result<(), PickleError> {
        self.stack.push(value);
        at_most("values on its stack", self.stack.len(), STACK_MAX)
    }

    /// Below this height, the stack belongs to who set the last mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Value, PickleError> {
        if self.stack.len() <= self.floor() {
            return Err(self.lacks("a value on its stack"));
        }
        self.stack.pop().ok_or(PickleError::Cut)
    }

    /// The values since the last mark.
    fn pop_group(&mut self) -> Result<Vec<Value>, PickleError> {
        let start = self.marks.pop().ok_or_else(|| self.lacks("a mark"))?;
        Ok(self.stack.split_off(start.min(self.stack.len())))
    }

    fn pop_tuple(&mut self) -> Result<Vec<Value>, PickleError> {
        let Value::Object(idx) = self.pop()? else { return Err(self.lacks("a tuple")) };
        match &self.objects[idx] {
            // A tuple that is a call's arguments is short; others are not copied.
            Object::Tuple(items) if items.len() <= AXES_MAX => Ok(items.clone()),
            _ => Err(self.lacks("a tuple of few items")),
        }
    }

    fn top_dict(&mut self) -> Result<&mut Vec<(Value, Value)>, PickleError> {
        let error = self.lacks("a dictionary");
        let height = self.stack.len();
        if height <= self.floor() {
            return Err(error);
        }
        let Value::Object(idx) = self.stack[height - 1] else { return Err(error) };
        match &mut self.objects[idx] {
            Object::Dict(entries) => Ok(entries),
            Object::Tuple(_) => Err(error),
        }
    }

    fn object(&mut self, object: Object) -> Result<Value, PickleError> {
        self.objects.push(object);
        at_most("objects", self.objects.len(), OBJECTS_MAX)?;
        Ok(Value::Object(self.objects.len() - 1))
    }

    fn remember(&mut self, key: u32) -> Result<(), PickleError> {
        let value = self.stack.last().cloned().ok_or_else(|| self.lacks("a value to remember"))?;
        self.memo.insert(key, value);
        at_most("values to remember", self.memo.len(), MEMO_MAX)
    }

    fn recall(&self, key: u32) -> Result<Value, PickleError> {
        self.memo.get(&key).cloned().ok_or_else(|| self.lacks("a value that was remembered"))
    }

    fn lacks(&self, expected: &'static str) -> PickleError {
        PickleError::Value { at: self.at, expected }
    }
}

/// What follows an instruction.
impl<'a> Machine<'a> {
    fn take(&mut self, n_bytes: usize) -> Result<&'a [u8], PickleError> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..n_bytes).ok_or(PickleError::Cut)?;
        self.at += n_bytes;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        self.take(N)?.try_into().map_err(|_| PickleError::Cut)
    }

    fn u8(&mut self) -> Result<u8, PickleError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, PickleError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// An integer of as many bytes as the first says, in two's complement.
    fn long(&mut self) -> Result<i64, PickleError> {
        let n_bytes = usize::from(self.u8()?);
        if 8 < n_bytes {
            return Err(self.lacks("an integer of 64 bits"));
        }
        let bytes = self.take(n_bytes)?;
        let is_negative = bytes.last().is_some_and(|it| 0x80 <= *it);
        let mut whole = [if is_negative { 0xff } else { 0 }; 8];
        whole[..n_bytes].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(whole))
    }

    fn text(&mut self, n_bytes: usize) -> Result<&'a str, PickleError> {
        let bytes = self.take(n_bytes)?;
        std::str::from_utf8(bytes).map_err(|_| self.lacks("text in UTF-8"))
    }

    fn line(&mut self) -> Result<String, PickleError> {
        let rest = &self.bytes[self.at..];
        let n_bytes = rest.iter().position(|it| *it == b'\n').ok_or(PickleError::Cut)?;
        let line = self.text(n_bytes)?.to_owned();
        self.at += 1;
        Ok(line)
    }
}

fn at_most(what: &'static str, found: usize, max: usize) -> Result<(), PickleError> {
    if found <= max { Ok(()) } else { Err(PickleError::TooMany { what, max }) }
}
