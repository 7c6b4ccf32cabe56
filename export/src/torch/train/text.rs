//! Training a language model on rows of text.

use aerie_models::{ModelConfig, decoder};
use tch::{Tensor, no_grad};

use crate::{
    checkpoint::{RunDir, TOKENIZER_FILE},
    data::{
        batches::{Batch, Cursor, Shape, Shuffle},
        corpus::Tokens,
        text, tokenizer,
    },
    run::TextData,
    torch::{
        backend::{Handle, Packing, PackingKind, Reading, void},
        log::Valid,
        parameters::Parameters,
        shim,
        train::task::Task,
    },
};

/// Tokens of a row when validating; longer than in training, so that few tokens lack a past.
const VALID_TIME: usize = 2048;
/// Rows of a batch when validating.
const VALID_ROWS: usize = 4;

/// The tokens of a run.
#[derive(Debug)]
pub(super) struct TextTokens {
    train: Tokens,
    valid: Option<Tokens>,
}

impl TextTokens {
    /// Reads the text of the run in `dir`, and validation text if it has some.
    ///
    /// # Errors
    /// If a text or the tokenizer cannot be read.
    pub(super) fn read(dir: &RunDir, data: &TextData) -> anyhow::Result<Self> {
        let tokenizer = tokenizer::load(&dir.path().join(TOKENIZER_FILE))?;
        let [train, valid] = read_text(data)?;
        let train = Tokens::encode(&tokenizer, &train, Some(dir.path()))?;
        let valid = match &*valid {
            [] => None,
            documents => Some(Tokens::encode(&tokenizer, documents, Some(dir.path()))?),
        };
        Ok(Self { train, valid })
    }
}

/// Documents to train on, and to validate on, as the options say.
fn read_text(data: &TextData) -> anyhow::Result<[Vec<String>; 2]> {
    if let Some(holdout) = data.holdout {
        return Ok(text::read_split(&data.text, data.documents, holdout)?);
    }
    let train = text::read(&data.text, data.documents)?;
    let valid = match &data.valid {
        Some(path) => text::read(path, data.documents)?,
        None => Vec::new(),
    };
    Ok([train, valid])
}

/// Rows of text to predict.
#[derive(Debug)]
pub(super) struct TextTask<'a> {
    model: &'a ModelConfig,
    tokens: &'a TextTokens,
    shuffle: Shuffle<'a>,
    /// Tokens of a row.
    time: u32,
}

impl<'a> TextTask<'a> {
    /// Takes the rows up at `cursor`.
    ///
    /// # Errors
    /// If there is not one row of text.
    pub(super) fn new(
        model: &'a ModelConfig,
        data: &TextData,
        tokens: &'a TextTokens,
        seed: u64,
        cursor: Cursor,
    ) -> anyhow::Result<Self> {
        let shape = Shape { rows: data.rows, time: data.time };
        let shuffle = Shuffle::new(&tokens.train, shape, seed, cursor)?;
        Ok(Self { model, tokens, shuffle, time: data.time })
    }
}

impl Task for TextTask<'_> {
    type Batch = Batch;

    fn batch(&mut self) -> anyhow::Result<Batch> {
        Ok(self.shuffle.batch())
    }

    fn cursor(&self) -> Cursor {
        self.shuffle.cursor()
    }

    fn seen(&self, batch: &Batch) -> u64 {
        batch.targets.len() as u64
    }

    fn part(&self, batch: &Batch, share: f64) -> Batch {
        let time = self.time as usize;
        let rows = batch.targets.len() / time;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "rows of a batch"
        )]
        let kept = ((rows as f64 * share).ceil() as usize).clamp(1, rows) * time;
        // No segment crosses the end of a row.
        let bounds = batch.bounds.iter().copied().filter(|&it| it <= kept as i64);
        Batch {
            inputs: batch.inputs[..kept].to_vec(),
            targets: batch.targets[..kept].to_vec(),
            bounds: bounds.collect(),
        }
    }

    fn loss(&self, parameters: &Parameters, batch: &Batch, _seed: u64) -> Tensor {
        nats(self.model, parameters, batch, self.time.into()) / batch.targets.len() as f64
    }

    fn validate(&self, parameters: &Parameters) -> anyhow::Result<Option<Valid>> {
        Ok(self.tokens.valid.as_ref().map(|tokens| evaluate(self.model, parameters, tokens)))
    }
}

/// Loss over all of `tokens` in rows of their own.
fn evaluate(model: &ModelConfig, parameters: &Parameters, tokens: &Tokens) -> Valid {
    let mut total = 0.0;
    let mut targets = 0;
    for batch in tokens.in_order(VALID_ROWS, VALID_TIME) {
        let found = no_grad(|| nats(model, parameters, &batch, VALID_TIME as i64));
        total += found.double_value(&[]);
        targets += batch.targets.len();
    }
    Valid {
        loss: total / targets as f64,
        score: total / std::f64::consts::LN_2 / tokens.text_bytes as f64,
    }
}

/// Sum of the cross entropy over a batch, in nats. No segment crosses a multiple of `row` tokens.
fn nats(model: &ModelConfig, parameters: &Parameters, batch: &Batch, row: i64) -> Tensor {
    let kind = PackingKind::Documents { row };
    let reading = Reading::new(model, parameters, Packing { bounds: batch.bounds.clone(), kind });
    let carry = void(model, batch.bounds.len() as i64 - 1, parameters.options()).map(Handle::of);
    let (_, device) = parameters.options();
    let [inputs, targets] =
        [&batch.inputs, &batch.targets].map(|it| Tensor::from_slice(it).to_device(device));
    let tokens = Handle(inputs);
    let (x, _) = decoder::hidden(model, &reading, &tokens, &carry);
    let table = parameters.embedding();
    shim::cross_entropy(&x, table, &targets, model.logits_soft_cap)
}
