//! Spoils one field of a message and keeps the lengths around it right; or the lengths themselves.
//!
//! Which fields there are is read off the bytes (the wire format of Protocol Buffers); what looks like a
//! message within a field may be taken for one.

use crate::mutate::Mutator;

/// One field: its key and what follows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Field {
    number: u64,
    value: Value,
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32([u8; 4]),
    /// A message, a text, or bytes; and a length that lies, if it does.
    Bytes(Vec<u8>, Option<u64>),
}

/// Spoils one field of the message in `input`, or of one within.
pub(crate) fn spoil(mutator: &mut Mutator<'_>, input: &mut Vec<u8>) {
    let Some(mut fields) = parse(input).filter(|it| !it.is_empty()) else {
        return mutator.binary(input);
    };
    let at = mutator.below(fields.len());
    if mutator.one_in(16) {
        match mutator.below(3) {
            0 => drop(fields.remove(at)),
            1 => fields.insert(mutator.below(fields.len()), fields[at].clone()),
            _ => fields[at].number = mutator.number(fields[at].number, 5),
        }
    } else {
        match &mut fields[at].value {
            Value::Varint(number) => *number = mutator.number(*number, 64),
            Value::Fixed64(bytes) => {
                *bytes = mutator.number(u64::from_le_bytes(*bytes), 64).to_le_bytes();
            }
            Value::Fixed32(bytes) => {
                let number = mutator.number(u32::from_le_bytes(*bytes).into(), 32);
                bytes.copy_from_slice(&number.to_le_bytes()[..4]);
            }
            Value::Bytes(bytes, length) => {
                if mutator.one_in(24) {
                    *length = Some(mutator.number(bytes.len() as u64, 64));
                } else if parse(bytes).is_some() && !mutator.one_in(8) {
                    spoil(mutator, bytes);
                } else if bytes.is_ascii() && mutator.one_in(2) {
                    mutator.text(bytes);
                } else {
                    mutator.binary(bytes);
                }
            }
        }
    }
    *input = write(&fields);
}

/// The fields of a message; none if the bytes are not one.
pub(crate) fn parse(mut rest: &[u8]) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        let value = match key & 7 {
            0 => Value::Varint(varint(&mut rest)?),
            1 => Value::Fixed64(chunk(&mut rest)?),
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                let (bytes, after) = rest.split_at_checked(length)?;
                rest = after;
                Value::Bytes(bytes.to_vec(), None)
            }
            5 => Value::Fixed32(chunk(&mut rest)?),
            _ => return None,
        };
        fields.push(Field { number: key >> 3, value });
    }
    Some(fields)
}

/// The bytes of a message.
pub(crate) fn write(fields: &[Field]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for Field { number, value } in fields {
        let key = number << 3;
        match value {
            Value::Varint(number) => {
                push(key, &mut bytes);
                push(*number, &mut bytes);
            }
            Value::Fixed64(fixed) => {
                push(key | 1, &mut bytes);
                bytes.extend(fixed);
            }
            Value::Bytes(within, length) => {
                push(key | 2, &mut bytes);
                push(length.unwrap_or(within.len() as u64), &mut bytes);
                bytes.extend(within);
            }
            Value::Fixed32(fixed) => {
                push(key | 5, &mut bytes);
                bytes.extend(fixed);
            }
        }
    }
    bytes
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

fn push(mut number: u64, bytes: &mut Vec<u8>) {
    while 0x80 <= number {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}

fn chunk<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (chunk, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*chunk)
}
