//! Requests as gRPC's wire has them, whose parts are counted before anything is made of them; no IO.
//!
//! A field of two bytes may take hundreds in memory, so that the size of a message bounds nothing by itself.

#[cfg(test)]
mod tests;

use aerie_proto::inference::ModelInferRequest;
use prost::{DecodeError, Message as _};
use thiserror::Error;

/// How much of what takes more in memory than on the wire.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Inputs, raw contents, outputs, and parameters of each of them and of the request.
    pub tensors_max: u32,
    /// Elements of typed tensors and extents of shapes, all together; not floats, which take no more than they did.
    pub elements_max: u32,
}

/// Why bytes are no request.
#[derive(Debug, Error)]
pub enum WireError {
    #[error("its {what} are more than {max}")]
    TooMany { what: &'static str, max: u32 },
    #[error("it ends amid a field")]
    Truncated,
    #[error("it has a field of type {wire_type}, which no message here has")]
    WireType { wire_type: u64 },
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// Decodes a request, if it holds no more than `limits` allow.
///
/// What it holds is copied: a slice of `bytes` would keep all of them, and with them fields that are not known or come
/// twice, of which the request shows nothing; and what else came in the same buffer.
///
/// # Errors
/// See [`WireError`].
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<ModelInferRequest, WireError> {
    let mut count = Count { limits, elements: 0 };
    count.message(Kind::Request, bytes)?;
    Ok(ModelInferRequest::decode(bytes)?)
}

/// The messages that are looked into.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Request,
    Input,
    Output,
    Contents,
}

/// What a field holds.
#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    /// A number of up to 64 bits.
    Number,
    Bytes(&'a [u8]),
}

/// Goes over a request; memory is bounded by the depth of messages within each other, which is three.
struct Count<'a> {
    limits: &'a Limits,
    elements: u64,
}

/// Numbers of fields are below that in the lists that are counted.
const LISTS: usize = 8;

impl Kind {
    /// What a field is called of which there may be so many.
    fn list(self, field: u64) -> Option<&'static str> {
        match (self, field) {
            (Self::Request | Self::Input, 4) | (Self::Output, 2) => Some("parameters"),
            (Self::Request, 5) => Some("inputs"),
            (Self::Request, 6) => Some("outputs"),
            (Self::Request, 7) => Some("raw_input_contents"),
            _ => None,
        }
    }
}

impl Count<'_> {
    fn message(&mut self, kind: Kind, mut rest: &[u8]) -> Result<(), WireError> {
        let mut lists = [0_u32; LISTS];
        while !rest.is_empty() {
            let (number, value) = field(&mut rest)?;
            if let Some(what) = kind.list(number) {
                let n = usize::try_from(number).ok().and_then(|it| lists.get_mut(it));
                let n = n.expect("the numbers of lists are below `LISTS`");
                *n += 1;
                let max = self.limits.tensors_max;
                if max < *n {
                    return Err(WireError::TooMany { what, max });
                }
            }
            match (kind, number, value) {
                (Kind::Request, 5, Value::Bytes(inner)) => self.message(Kind::Input, inner)?,
                (Kind::Request, 6, Value::Bytes(inner)) => self.message(Kind::Output, inner)?,
                (Kind::Input, 5, Value::Bytes(inner)) => self.message(Kind::Contents, inner)?,
                (Kind::Contents, 8, _) => self.elements(1)?,
                // Numbers of variable length: the shape, and those of 32 and 64 bits.
                (Kind::Input, 3, value) | (Kind::Contents, 2..=5, value) => {
                    self.elements(value.numbers())?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn elements(&mut self, n: usize) -> Result<(), WireError> {
        self.elements += n as u64;
        let max = self.limits.elements_max;
        if u64::from(max) < self.elements {
            return Err(WireError::TooMany { what: "elements", max });
        }
        Ok(())
    }
}

impl Value<'_> {
    /// How many there are: lists of numbers may come one by one, or packed into bytes.
    fn numbers(self) -> usize {
        match self {
            Self::Number => 1,
            Self::Bytes(packed) => packed.iter().filter(|&&byte| byte < 0x80).count(),
        }
    }
}

/// The number of the next field, and what it holds.
fn field<'a>(rest: &mut &'a [u8]) -> Result<(u64, Value<'a>), WireError> {
    let key = varint(rest)?;
    let value = match key & 7 {
        0 => {
            varint(rest)?;
            Value::Number
        }
        1 => {
            take(rest, 8)?;
            Value::Number
        }
        2 => {
            let length = usize::try_from(varint(rest)?).map_err(|_| WireError::Truncated)?;
            Value::Bytes(take(rest, length)?)
        }
        5 => {
            take(rest, 4)?;
            Value::Number
        }
        wire_type => return Err(WireError::WireType { wire_type }),
    };
    Ok((key >> 3, value))
}

fn varint(rest: &mut &[u8]) -> Result<u64, WireError> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err(WireError::Truncated)
}

fn take<'a>(rest: &mut &'a [u8], n: usize) -> Result<&'a [u8], WireError> {
    let (taken, after) = rest.split_at_checked(n).ok_or(WireError::Truncated)?;
    *rest = after;
    Ok(taken)
}
