//! A model on a backend: weights in place, programs compiled as they are first needed.

use crate::config::ModelConfig;
use crate::lora::Lora;
use crate::model::{Model, Room};
use crate::record::{self, Pass, Update};
use crate::weights::Parameter;
use half::{bf16, f16};
use landmark_core::{Backend, DType, Elements, Paging, Tensor};
use std::borrow::Cow;
use std::ops::{Deref, DerefMut, Range};

/// What can go wrong while a model is loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The backend failed.
    #[error(transparent)]
    Backend(#[from] landmark_core::Error),
    /// An impossible configuration.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// Impossible adapters.
    #[error(transparent)]
    Lora(#[from] crate::lora::LoraError),
    /// A weight is missing.
    #[error(
        "weight `{0}` is missing: the checkpoint belongs to another model, or its settings do not fit it"
    )]
    Missing(String),
    /// A weight has another shape.
    #[error("weight `{name}` has shape {found:?}, the configuration asks for {expected:?}")]
    Shape {
        /// Name of the weight.
        name: String,
        /// Shape in the checkpoint.
        found: Vec<usize>,
        /// Shape by the configuration.
        expected: Vec<usize>,
    },
    /// A token that the model does not have.
    #[error(
        "token {token} is outside the model's vocabulary of {vocab}; use the tokenizer that the model was trained with"
    )]
    Token {
        /// The token.
        token: u32,
        /// Rows of the embedding.
        vocab: usize,
    },
    /// A landmark where the memory puts its own.
    #[error(
        "the input holds landmark tokens already, but the memory inserts them itself: give a stream without \
         landmarks (--mem_freq None)"
    )]
    LandmarkInInput,
    /// The rows of one batch have to be equally long.
    #[error("{tokens} tokens do not make {batch} rows of one length")]
    Ragged {
        /// Tokens given.
        tokens: usize,
        /// Rows wanted.
        batch: usize,
    },
    /// A loss that is not a number.
    #[error("the loss is {loss} in step {step}")]
    Loss {
        /// The loss.
        loss: f64,
        /// Optimiser steps done before.
        step: u64,
    },
}

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Floats as the bytes of an element type.
fn in_type(dtype: DType, values: &[f32]) -> Cow<'_, [u8]> {
    match dtype {
        DType::Bf16 => Cow::Owned(values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect()),
        DType::F16 => Cow::Owned(values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect()),
        _ => Cow::Borrowed(bytemuck::cast_slice(values)),
    }
}

/// A model on a backend.
pub struct Engine<B: Backend> {
    backend: B,
    model: Model,
    arena: B::Arena,
    plans: Vec<(Pass, B::Plan)>,
    update: Option<B::Plan>,
}

/// An engine that was lent to a reader, or given to it. A command lends: its engine outlives what reads with it. What
/// lives as long as its engine and is held from outside, as the objects of a web page are, owns it.
pub enum Held<'e, B: Backend> {
    /// Somebody else's.
    Lent(&'e mut Engine<B>),
    /// The reader's own.
    Owned(Box<Engine<B>>),
}

impl<B: Backend> Deref for Held<'_, B> {
    type Target = Engine<B>;

    fn deref(&self) -> &Engine<B> {
        match self {
            Held::Lent(engine) => engine,
            Held::Owned(engine) => engine,
        }
    }
}

impl<B: Backend> DerefMut for Held<'_, B> {
    fn deref_mut(&mut self) -> &mut Engine<B> {
        match self {
            Held::Lent(engine) => engine,
            Held::Owned(engine) => engine,
        }
    }
}

impl<B: Backend> Engine<B> {
    /// Lays a model out and allocates it; weights are zero until they are loaded or initialised.
    ///
    /// # Errors
    /// An impossible configuration, or too little memory.
    pub fn new(backend: B, config: ModelConfig, room: Room) -> Result<Self> {
        Self::with(backend, config, room, None, Paging::default())
    }

    /// The same, with low-rank adapters if `lora` is given, and the blocks of its memory kept where `paging` allows.
    ///
    /// # Errors
    /// As [`new`](Self::new), and adapters that the model has no place for.
    pub fn with(
        backend: B,
        config: ModelConfig,
        room: Room,
        lora: Option<Lora>,
        paging: Paging,
    ) -> Result<Self> {
        config.validate()?;
        room.validate(&config)?;
        if let Some(lora) = &lora {
            lora.validate(&config)?;
        }
        let model = Model::with_adapters(config, room, lora);
        let mut arena = backend.allocate_within(&model.layout, paging)?;
        let frequencies = model.config.rotary.frequencies(model.config.head_dim);
        backend.write(&mut arena, model.inputs.frequencies, bytemuck::cast_slice(&frequencies))?;
        Ok(Engine { backend, model, arena, plans: Vec::new(), update: None })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.model.config
    }

    /// Draws first weights, those of adapters too.
    ///
    /// # Errors
    /// Failures of the backend.
    pub fn initialise(&mut self, seed: u64) -> Result<()> {
        Self::draw(&self.backend, &mut self.arena, &self.model, &self.model.weights.parameters, seed)?;
        self.initialise_adapters(seed)
    }

    /// Draws first weights of the adapters.
    ///
    /// # Errors
    /// Failures of the backend.
    pub fn initialise_adapters(&mut self, seed: u64) -> Result<()> {
        Self::draw(&self.backend, &mut self.arena, &self.model, &self.model.weights.adapters, seed)
    }

    fn draw(
        backend: &B,
        arena: &mut B::Arena,
        model: &Model,
        parameters: &[Parameter],
        seed: u64,
    ) -> Result<()> {
        for (index, parameter) in parameters.iter().enumerate() {
            let values = parameter.initial(seed, index);
            Self::put(backend, arena, (parameter.tensor, parameter.copy), &values, model)?;
        }
        Ok(())
    }

    /// Writes floats into a tensor in its own type, and into its half copy.
    fn put(
        backend: &B,
        arena: &mut B::Arena,
        (tensor, copy): (Tensor, Option<Tensor>),
        values: &[f32],
        model: &Model,
    ) -> Result<()> {
        for tensor in [Some(tensor), copy].into_iter().flatten() {
            let bytes = in_type(model.layout.info(tensor).dtype, values);
            backend.write(arena, tensor, &bytes)?;
        }
        Ok(())
    }

    /// Loads every weight of the model itself: `find` gives shape and values of a name.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Shape`], whatever `find` reports, failures of the backend.
    pub fn load<E: From<Error>>(
        &mut self,
        find: impl FnMut(&str) -> Result<Option<(Vec<usize>, Vec<f32>)>, E>,
    ) -> Result<(), E> {
        Self::load_all(&self.backend, &mut self.arena, &self.model, &self.model.weights.parameters, find)
    }

    /// Loads what training changes: adapters and the matrices trained whole, or without adapters every weight.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_trained<E: From<Error>>(
        &mut self,
        find: impl FnMut(&str) -> Result<Option<(Vec<usize>, Vec<f32>)>, E>,
    ) -> Result<(), E> {
        let parameters: Vec<Parameter> = self.model.trained_parameters().cloned().collect();
        Self::load_all(&self.backend, &mut self.arena, &self.model, &parameters, find)
    }

    fn load_all<E: From<Error>>(
        backend: &B,
        arena: &mut B::Arena,
        model: &Model,
        parameters: &[Parameter],
        mut find: impl FnMut(&str) -> Result<Option<(Vec<usize>, Vec<f32>)>, E>,
    ) -> Result<(), E> {
        for parameter in parameters {
            let (found, values) =
                find(&parameter.name)?.ok_or_else(|| Error::Missing(parameter.name.clone()))?;
            if found != parameter.shape || values.len() != parameter.numel() {
                let (name, expected) = (parameter.name.clone(), parameter.shape.clone());
                return Err(Error::Shape { name, found, expected }.into());
            }
            Self::put(backend, arena, (parameter.tensor, parameter.copy), &values, model)?;
        }
        Ok(())
    }

    /// Writes the first elements of a float tensor, in its own type; of a parameter, its half copy too.
    ///
    /// # Errors
    /// Failures of the backend.
    pub fn write_floats(&mut self, tensor: Tensor, values: &[f32]) -> Result<()> {
        let weights = &self.model.weights;
        let parameter = weights.parameters.iter().chain(&weights.adapters).find(|p| p.tensor == tensor);
        let copy = parameter.and_then(|p| p.copy);
        Self::put(&self.backend, &mut self.arena, (tensor, copy), values, &self.model)
    }

    /// Writes elements of a float tensor from number `first` on, in its own type.
    ///
    /// # Errors
    /// Failures of the backend.
    pub fn write_floats_at(&mut self, tensor: Tensor, first: usize, values: &[f32]) -> Result<()> {
        let bytes = in_type(self.model.layout.info(tensor).dtype, values);
        Ok(self.backend.write_at(&mut self.arena, tensor, first, &bytes)?)
    }

    /// Reads a whole float tensor, whatever its type.
    ///
    /// # Errors
    /// Failures of the backend.
    pub async fn read_floats(&self, tensor: Tensor) -> Result<Vec<f32>> {
        let bytes = self.backend.read(&self.arena, tensor).await?;
        let halves = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
        Ok(match self.model.layout.info(tensor).dtype {
            DType::Bf16 => halves().map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
            DType::F16 => halves().map(|b| f16::from_le_bytes(b).to_f32()).collect(),
            _ => bytemuck::allocation::pod_collect_to_vec(&bytes),
        })
    }

    /// Writes the first elements of a tensor.
    ///
    /// # Errors
    /// Failures of the backend.
    pub fn write<T: bytemuck::NoUninit>(&mut self, tensor: Tensor, values: &[T]) -> Result<()> {
        Ok(self.backend.write(&mut self.arena, tensor, bytemuck::cast_slice(values))?)
    }

    /// Reads a whole tensor.
    ///
    /// # Errors
    /// Failures of the backend.
    pub async fn read<T: bytemuck::Pod>(&self, tensor: Tensor) -> Result<Vec<T>> {
        let bytes = self.backend.read(&self.arena, tensor).await?;
        Ok(bytemuck::allocation::pod_collect_to_vec(&bytes))
    }

    /// Reads the first elements of a tensor.
    ///
    /// # Errors
    /// Failures of the backend.
    pub async fn read_first<T: bytemuck::Pod>(&self, tensor: Tensor, count: usize) -> Result<Vec<T>> {
        self.read_at(tensor, 0..count).await
    }

    /// Reads some elements of a tensor; of a paged one, whole pages.
    ///
    /// # Errors
    /// Failures of the backend.
    pub async fn read_at<T: bytemuck::Pod>(&self, tensor: Tensor, elements: Range<usize>) -> Result<Vec<T>> {
        let bytes = self.backend.read_at(&self.arena, tensor, elements).await?;
        Ok(bytemuck::allocation::pod_collect_to_vec(&bytes))
    }

    /// Reads the first elements of a tensor into numbers that are there already.
    ///
    /// # Errors
    /// Failures of the backend.
    pub async fn read_into<T: bytemuck::Pod>(&self, tensor: Tensor, to: &mut [T]) -> Result<()> {
        let elements = 0..to.len();
        Ok(self.backend.read_into(&self.arena, tensor, elements, bytemuck::cast_slice_mut(to)).await?)
    }

    /// Asks for some elements as what was run so far leaves them, whatever is run next: see [`Backend::begin_read`].
    ///
    /// # Errors
    /// Failures of the backend.
    pub fn begin_read<T: bytemuck::Pod>(
        &self,
        wanted: &[Elements],
    ) -> Result<Option<impl Future<Output = Result<Vec<T>>> + use<T, B>>> {
        let answer = self.backend.begin_read(&self.arena, wanted)?;
        Ok(answer.map(|answer| async { Ok(bytemuck::allocation::pod_collect_to_vec(&answer.await?)) }))
    }

    /// Writes elements of a tensor from number `first` on; of a paged one, whole pages.
    ///
    /// # Errors
    /// Failures of the backend.
    pub fn write_at<T: bytemuck::NoUninit>(
        &mut self,
        tensor: Tensor,
        first: usize,
        values: &[T],
    ) -> Result<()> {
        Ok(self.backend.write_at(&mut self.arena, tensor, first, bytemuck::cast_slice(values))?)
    }

    /// The backend and its storage, for tests that look inside.
    pub fn parts(&mut self) -> (&B, &mut B::Arena) {
        (&self.backend, &mut self.arena)
    }

    /// Runs a step; it is recorded and compiled when it is first asked for.
    ///
    /// # Errors
    /// Failures of the backend, tokens outside the vocabulary.
    pub fn run(&mut self, pass: &Pass) -> Result<()> {
        let known = self.plans.iter().position(|(p, _)| p == pass);
        let index = match known {
            Some(index) => index,
            None => {
                let program = record::step(&self.model, pass);
                let plan = self.backend.compile(&program, &self.arena)?;
                self.plans.push((*pass, plan));
                self.plans.len() - 1
            }
        };
        Ok(self.backend.run(&mut self.plans[index].1, &mut self.arena)?)
    }

    /// Updates every parameter from its gradient. `hyper` is what the optimiser's op asks for; `update` is
    /// fixed by the first call.
    ///
    /// # Errors
    /// Failures of the backend.
    pub fn update(&mut self, update: &Update, hyper: [f32; 3]) -> Result<()> {
        self.write(self.model.inputs.hyper, &hyper)?;
        if self.update.is_none() {
            let program = record::update(&self.model, update);
            self.update = Some(self.backend.compile(&program, &self.arena)?);
        }
        let plan = self.update.as_mut().expect("compiled just now");
        Ok(self.backend.run(plan, &mut self.arena)?)
    }
}
