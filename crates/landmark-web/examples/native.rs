//! What the page's worker does, natively: for comparing the page in a browser with the same on the same adapter.
//!
//!     cargo run --release -p landmark-web --example native -- MODEL TOKENS [ADAPTER | cpu]

use std::path::Path;
use std::time::Instant;

use landmark_core::{Backend, Cpu, DType};
use landmark_probe::filler::Filler;
use landmark_web::files::ModelFiles;
use landmark_web::prompt::{Hay, Hidden};
use landmark_web::recall::{Recall, on_wgpu};
use landmark_web::text::Text;
use landmark_wgpu::{Choice, Options, Wgpu};
use pollster::block_on;

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, folder, tokens, device @ ..] = &arguments[..] else {
        return Err("usage: native MODEL TOKENS [ADAPTER | cpu]".into());
    };
    let read = |name| std::fs::read(Path::new(folder).join(name));
    let files =
        ModelFiles::parse(&read("config.json")?, &read("tokenizer.json")?, read("model.safetensors")?)?;
    let hidden = Hidden::new(&files.tokenizer, Hay::Filler(Filler::Prose), tokens.parse()?, 0.5, 2)?;
    match device.first().map(String::as_str) {
        Some("cpu") => run(&Cpu::<f32>::new(), &files, &hidden, DType::F32),
        name => {
            let adapter = name.map_or(Choice::Best, Choice::parse);
            let options = Options { adapter, weights: files.bits(), ..Options::default() };
            let wgpu = block_on(Wgpu::open(&options))?;
            println!("{}", wgpu.info().name);
            let compute = on_wgpu(wgpu.info());
            run(&wgpu, &files, &hidden, compute)
        }
    }
}

/// Twice: the second time every shader has been compiled.
fn run<B: Backend + Clone + 'static>(
    backend: &B,
    files: &ModelFiles,
    hidden: &Hidden,
    compute: DType,
) -> Outcome {
    ask(backend.clone(), files, hidden, compute)?;
    ask(backend.clone(), files, hidden, compute)
}

fn ask<B: Backend + 'static>(backend: B, files: &ModelFiles, hidden: &Hidden, compute: DType) -> Outcome {
    let text = Text::new(files, hidden.text.clone(), usize::MAX)?;
    let mut recall = Recall::new(backend, files, text.tokens().len(), compute)?;
    let (began, mut read) = (Instant::now(), 0);
    while !recall.is_done(&text) {
        let before = Instant::now();
        read = block_on(recall.read(&text, 1))?;
        if before.elapsed().as_secs_f64() > 1.0 {
            println!("{read} tokens, the last chunk in {:.2} s", before.elapsed().as_secs_f64());
        }
    }
    println!("read {read} tokens at {:.0} tokens/s", read as f64 / began.elapsed().as_secs_f64());
    block_on(recall.ask(files, &text, &hidden.question))?;
    let (began, mut count, mut answer) = (Instant::now(), 0, String::new());
    while let (true, Some(more)) = (count < hidden.max_new_tokens, block_on(recall.next(files))?) {
        (count, answer) = (count + 1, more);
        block_on(recall.lookups())?;
    }
    let speed = count as f64 / began.elapsed().as_secs_f64();
    println!("{answer:?}, expected {}, at {speed:.0} tokens/s", hidden.expected);
    Ok(())
}
