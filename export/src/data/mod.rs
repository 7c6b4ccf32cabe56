//! From text to batches: documents, tokenizers, token streams, rows in a seeded order; and from
//! pictures to batches. Knows no tensor library.

pub mod batches;
pub mod corpus;
pub mod images;
pub mod sessions;
pub mod text;
pub mod tokenizer;
