//! What the page calls. One object in a Web Worker: a model, a device, a text, and its memory.
//!
//! Every call that computes is a promise and does a bounded piece of work: some chunks, one token. So between two of them
//! the worker sees what the visitor wants meanwhile, such as to stop. Calls come one at a time; the worker sees to that.
//!
//! Results that are more than a number are JSON texts: they are small and few, and need no glue.

use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::prompt::{Hay, Hidden, MAX_NEW_TOKENS};
use crate::recall::{Alone, Recall, on_wgpu};
use crate::text::Text;
use landmark_core::{Cpu, DType};
use landmark_probe::filler::Filler;
use landmark_wgpu::{Options, Wgpu};
use serde_json::json;
use wasm_bindgen::prelude::*;

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = console)]
    fn error(text: &str);
}

/// Called once: a panic, which stops the module, says why in the browser's console.
#[wasm_bindgen(start)]
pub fn start() {
    std::panic::set_hook(Box::new(|info| error(&info.to_string())));
}

/// The worker's object.
#[wasm_bindgen]
pub struct Reader {
    files: ModelFiles,
    device: Option<Device>,
    text: Option<Text>,
    recall: Option<EitherRecall>,
    alone: Option<On<Alone<Wgpu>, Alone<Cpu<f32>>>>,
}

/// Where it computes.
enum Device {
    Gpu(Box<Wgpu>),
    Cpu,
}

/// The same on one device or the other.
enum On<G, C> {
    Gpu(G),
    Cpu(C),
}

type EitherRecall = On<Recall<Wgpu>, Recall<Cpu<f32>>>;

/// Does the same on either device.
macro_rules! on {
    ($what:expr, |$inner:ident| $work:expr) => {
        match $what {
            On::Gpu($inner) => $work,
            On::Cpu($inner) => $work,
        }
    };
}

#[wasm_bindgen]
impl Reader {
    /// Parses the model's files.
    #[wasm_bindgen(constructor)]
    pub fn new(config: &[u8], tokenizer: &[u8], weights: Vec<u8>) -> Result<Reader, JsValue> {
        let files = ModelFiles::parse(config, tokenizer, weights).map_err(thrown)?;
        Ok(Reader { files, device: None, text: None, recall: None, alone: None })
    }

    /// What is known of the model.
    pub fn model(&self) -> String {
        let config = &self.files.config;
        json!({
            "context": config.context,
            "block": self.files.block(),
            "freq": self.files.freq,
            "layers": config.layers,
            "heads": config.heads,
            "bytes": self.files.weight_bytes(),
            "bits": self.files.bits().map(|bits| 8 * bits.code_bytes() / 32),
        })
        .to_string()
    }

    /// Opens the GPU, or the CPU. What was read before is forgotten; the text is kept.
    pub async fn open(&mut self, gpu: bool) -> Result<String, JsValue> {
        (self.recall, self.alone, self.device) = (None, None, None);
        let (device, about) = if gpu {
            let options = Options { weights: self.files.bits(), ..Options::default() };
            let wgpu = Wgpu::open(&options).await.map_err(|e| thrown(e.into()))?;
            let info = wgpu.info();
            let name = if info.name.is_empty() { "a GPU without a name" } else { &info.name };
            let about = json!({
                "kind": "gpu", "name": name, "software": info.is_software, "features": info.features,
            });
            (Device::Gpu(Box::new(wgpu)), about)
        } else {
            (Device::Cpu, json!({ "kind": "cpu", "name": "CPU (WebAssembly)", "software": false }))
        };
        self.device = Some(device);
        Ok(about.to_string())
    }

    /// Makes a text of `length` tokens with a pass key in it. `filler` is `released`, `notes` or `prose`, or empty for a text
    /// of one's own.
    pub fn hide(
        &mut self,
        filler: &str,
        own: &str,
        length: usize,
        depth: f64,
        seed: u32,
    ) -> Result<String, JsValue> {
        let made = || {
            let hay = match Filler::NAMED.iter().find(|(name, _)| *name == filler) {
                Some(&(_, filler)) => Hay::Filler(filler),
                None => Hay::Own(own),
            };
            let hidden = Hidden::new(&self.files.tokenizer, hay, length, depth, seed.into())?;
            let text = Text::new(&self.files, hidden.text.clone(), length)?;
            let needle = text.blocks_of(&self.files, hidden.needle.clone())?;
            Ok((hidden, text, needle))
        };
        let (hidden, text, (first, last)) = made().map_err(thrown)?;
        let about = json!({
            "tokens": text.tokens().len(), "blocks": text.blocks(), "cut": text.is_cut(),
            "question": hidden.question, "expected": hidden.expected, "needle": [first, last],
            "maxNewTokens": hidden.max_new_tokens,
        });
        self.text = Some(text);
        Ok(about.to_string())
    }

    /// Takes a text as it is, its first `length` tokens.
    pub fn take(&mut self, own: String, length: usize) -> Result<String, JsValue> {
        if own.trim().is_empty() {
            return Err(thrown(Error::Input(
                "There is no text. Paste one, or choose a built-in one.".into(),
            )));
        }
        let text = Text::new(&self.files, own, length).map_err(thrown)?;
        let about = json!({
            "tokens": text.tokens().len(), "blocks": text.blocks(), "cut": text.is_cut(),
            "maxNewTokens": MAX_NEW_TOKENS,
        });
        self.text = Some(text);
        Ok(about.to_string())
    }

    /// Begins to read the text: an empty memory with room for it. One that is there already is used again.
    pub fn begin(&mut self) -> Result<String, JsValue> {
        let tokens = self.text().map_err(thrown)?.tokens().len();
        let files = &self.files;
        match &mut self.recall {
            Some(recall) if on!(&*recall, |recall| recall.fits(files, tokens)) => {
                on!(recall, |recall| recall.clear());
            }
            _ => {
                // What there was is given up before room is made for what comes.
                self.recall = None;
                self.recall = Some(match &self.device {
                    None => return Err(thrown(Error::Order("open a device"))),
                    Some(Device::Gpu(wgpu)) => On::Gpu(
                        Recall::new((**wgpu).clone(), files, tokens, on_wgpu(wgpu.info())).map_err(thrown)?,
                    ),
                    Some(Device::Cpu) => {
                        On::Cpu(Recall::new(Cpu::new(), files, tokens, DType::F32).map_err(thrown)?)
                    }
                });
            }
        }
        let Some(recall) = &self.recall else { return Ok(String::new()) };
        let about = on!(recall, |recall| json!({ "chunk": recall.chunk(), "topK": recall.top_k() }));
        Ok(about.to_string())
    }

    /// Reads some more chunks; gives the number of tokens read so far.
    pub async fn read(&mut self, chunks: usize) -> Result<usize, JsValue> {
        let (_, text, recall) = self.parts().map_err(thrown)?;
        on!(recall, |recall| recall.read(text, chunks).await).map_err(thrown)
    }

    /// Whether everything is read but the rest that is read with a question.
    #[wasm_bindgen(js_name = isRead)]
    pub fn is_read(&self) -> bool {
        match (&self.text, &self.recall) {
            (Some(text), Some(recall)) => on!(recall, |recall| recall.is_done(text)),
            _ => false,
        }
    }

    /// Asks a question about the text. Another one may follow.
    pub async fn ask(&mut self, question: String) -> Result<(), JsValue> {
        let (files, text, recall) = self.parts().map_err(thrown)?;
        on!(recall, |recall| recall.ask(files, text, &question).await).map_err(thrown)
    }

    /// The answer with one more token; undefined at its end.
    pub async fn next(&mut self) -> Result<Option<String>, JsValue> {
        let (files, _, recall) = self.parts().map_err(thrown)?;
        on!(recall, |recall| recall.next(files).await).map_err(thrown)
    }

    /// What was fetched for the last token of the answer: layer, head, block and share of the attention of each.
    pub async fn lookups(&mut self) -> Result<Vec<f32>, JsValue> {
        let (_, _, recall) = self.parts().map_err(thrown)?;
        let layers = on!(recall, |recall| recall.lookups().await).map_err(thrown)?;
        let mut flat = Vec::new();
        for (layer, heads) in layers.iter().enumerate() {
            for (head, fetched) in heads.iter().enumerate() {
                for one in fetched {
                    flat.extend([layer as f32, head as f32, one.block as f32, one.share]);
                }
            }
        }
        Ok(flat)
    }

    /// Asks the same without a memory; gives the number of tokens that the model sees.
    #[wasm_bindgen(js_name = askAlone)]
    pub async fn ask_alone(&mut self, question: String) -> Result<usize, JsValue> {
        if self.alone.is_none() {
            let files = &self.files;
            self.alone = Some(match &self.device {
                None => return Err(thrown(Error::Order("open a device"))),
                Some(Device::Gpu(wgpu)) => {
                    On::Gpu(Alone::new((**wgpu).clone(), files, on_wgpu(wgpu.info())).map_err(thrown)?)
                }
                Some(Device::Cpu) => On::Cpu(Alone::new(Cpu::new(), files, DType::F32).map_err(thrown)?),
            });
        }
        let (Some(text), Some(alone)) = (&self.text, &mut self.alone) else { return Ok(0) };
        on!(alone, |alone| alone.ask(&self.files, text, &question).await).map_err(thrown)
    }

    /// Its answer with one more token; undefined at its end.
    #[wasm_bindgen(js_name = nextAlone)]
    pub async fn next_alone(&mut self) -> Result<Option<String>, JsValue> {
        let Some(alone) = &mut self.alone else { return Err(thrown(Error::Order("ask"))) };
        on!(alone, |alone| alone.next(&self.files).await).map_err(thrown)
    }

    /// What stands in a block of the text.
    #[wasm_bindgen(js_name = blockText)]
    pub fn block_text(&self, block: usize) -> String {
        self.text.as_ref().map_or_else(String::new, |text| text.block(&self.files, block))
    }

    /// Bytes held on the GPU.
    pub fn held(&mut self) -> f64 {
        let recall = match &mut self.recall {
            Some(On::Gpu(recall)) => bytes(recall.generator().engine()),
            _ => 0,
        };
        let alone = match &mut self.alone {
            Some(On::Gpu(alone)) => bytes(alone.generator().engine()),
            _ => 0,
        };
        let shared = match &self.device {
            Some(Device::Gpu(wgpu)) => wgpu.shared_bytes(),
            _ => 0,
        };
        (recall + alone + shared) as f64
    }

    /// Loses the GPU, as a driver's reset would: for seeing what then happens.
    pub fn lose(&self) {
        if let Some(Device::Gpu(wgpu)) = &self.device {
            wgpu.lose();
        }
    }
}

impl Reader {
    fn text(&self) -> Result<&Text> {
        self.text.as_ref().ok_or(Error::Order("choose a text"))
    }

    fn parts(&mut self) -> Result<(&ModelFiles, &Text, &mut EitherRecall)> {
        let text = self.text.as_ref().ok_or(Error::Order("choose a text"))?;
        let recall = self.recall.as_mut().ok_or(Error::Order("begin to read"))?;
        Ok((&self.files, text, recall))
    }
}

fn bytes(engine: &mut landmark_model::engine::Engine<Wgpu>) -> u64 {
    engine.parts().1.bytes()
}

/// A JavaScript error with a name that says whose fault it is.
fn thrown(error: Error) -> JsValue {
    let thrown = js_sys::Error::new(&error.to_string());
    thrown.set_name(error.kind());
    thrown.into()
}
