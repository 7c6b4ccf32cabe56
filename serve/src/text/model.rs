//! The model of a tokenizer: ours where it covers it, else the library's.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::value::RawValue;
use tokenizers::{
    ModelWrapper, Token,
    models::{TrainerWrapper, bpe::BpeTrainer},
};

use super::bpe::Bpe;

/// Words to tokens.
#[derive(Debug)]
pub(super) enum Model {
    Flat(Bpe),
    Library(Box<ModelWrapper>),
}

impl<'de> Deserialize<'de> for Model {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = <&RawValue>::deserialize(deserializer)?.get();
        match Bpe::parse(json) {
            Some(bpe) => Ok(Self::Flat(bpe)),
            // What is wrong, if anything, is the library's to say.
            None => serde_json::from_str(json)
                .map(|model| Self::Library(Box::new(model)))
                .map_err(D::Error::custom),
        }
    }
}

impl tokenizers::Model for Model {
    type Trainer = TrainerWrapper;

    fn tokenize(&self, sequence: &str) -> tokenizers::Result<Vec<Token>> {
        match self {
            Self::Flat(bpe) => Ok(bpe.tokenize(sequence)),
            Self::Library(model) => model.tokenize(sequence),
        }
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        match self {
            Self::Flat(bpe) => bpe.id(token),
            Self::Library(model) => model.token_to_id(token),
        }
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        match self {
            Self::Flat(bpe) => bpe.text(id).map(str::to_owned),
            Self::Library(model) => model.id_to_token(id),
        }
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        match self {
            Self::Flat(bpe) => bpe.iter().map(|(text, id)| (text.to_owned(), id)).collect(),
            Self::Library(model) => model.get_vocab(),
        }
    }

    fn get_vocab_size(&self) -> usize {
        match self {
            Self::Flat(bpe) => bpe.len(),
            Self::Library(model) => model.get_vocab_size(),
        }
    }

    /// Ours is read and never written.
    fn save(&self, folder: &Path, prefix: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        match self {
            Self::Flat(_) => Err("a model on flat tables is not written".into()),
            Self::Library(model) => model.save(folder, prefix),
        }
    }

    fn get_trainer(&self) -> TrainerWrapper {
        match self {
            Self::Flat(_) => BpeTrainer::default().into(),
            Self::Library(model) => model.get_trainer(),
        }
    }
}
