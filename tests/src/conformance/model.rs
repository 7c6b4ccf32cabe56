//! An ONNX model of one node, as bytes: just enough of the format (onnx.proto, IR version 9) for a
//! runtime to load an operator by its schema.

use aerie_ops::schema::{DOMAIN, DOMAIN_VERSION, Element, OpSchema, Port};

/// A model whose graph is `schema`'s node, with its ports as the graph's inputs and outputs, and
/// `attributes`, all integers.
pub fn one_node(schema: &OpSchema, attributes: &[(&str, usize)]) -> Vec<u8> {
    let mut node = Message::default();
    for port in schema.inputs {
        node.text(1, port.name);
    }
    for port in schema.outputs {
        node.text(2, port.name);
    }
    node.text(3, schema.name).text(4, schema.name);
    for (name, value) in attributes {
        let mut attribute = Message::default();
        attribute.text(1, name).number(3, *value as u64).number(20, INT);
        node.message(5, &attribute);
    }
    node.text(7, DOMAIN);

    let mut graph = Message::default();
    graph.message(1, &node).text(2, schema.name);
    for port in schema.inputs {
        graph.message(11, &value_info(port));
    }
    for port in schema.outputs {
        graph.message(12, &value_info(port));
    }

    let mut model = Message::default();
    model.number(1, IR_VERSION).message(7, &graph);
    for (domain, version) in [("", OPSET_VERSION), (DOMAIN, u64::from(DOMAIN_VERSION))] {
        let mut opset = Message::default();
        opset.text(1, domain).number(2, version);
        model.message(8, &opset);
    }
    model.0
}

const IR_VERSION: u64 = 9;
const OPSET_VERSION: u64 = 18;
/// `AttributeProto.AttributeType.INT`.
const INT: u64 = 2;

/// A value of known type and unknown shape.
fn value_info(port: &Port) -> Message {
    let element = match port.element {
        Element::F32 => 1,
        Element::U8 => 2,
        Element::I32 => 6,
        Element::I64 => 7,
        Element::Bool => 9,
    };
    let mut tensor = Message::default();
    tensor.number(1, element);
    let mut kind = Message::default();
    kind.message(1, &tensor);
    let mut info = Message::default();
    info.text(1, port.name).message(2, &kind);
    info
}

/// A protobuf message in the making.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn number(&mut self, field: u64, value: u64) -> &mut Self {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    fn text(&mut self, field: u64, value: &str) -> &mut Self {
        self.bytes(field, value.as_bytes())
    }

    fn message(&mut self, field: u64, value: &Self) -> &mut Self {
        self.bytes(field, &value.0)
    }

    fn bytes(&mut self, field: u64, value: &[u8]) -> &mut Self {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    fn varint(&mut self, mut value: u64) {
        while 0x7F < value {
            self.0.push(0x80 | low_bits(value));
            value >>= 7;
        }
        self.0.push(low_bits(value));
    }
}

fn low_bits(value: u64) -> u8 {
    u8::try_from(value & 0x7F).expect("seven bits")
}
