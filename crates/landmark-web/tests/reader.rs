//! What the page's worker does, on the CPU and without a browser: a text read in pieces and asked about gives the answers that
//! the command line's way of reading gives, token for token.

use landmark_core::{Cpu, DType};
use landmark_data::learn_vocabulary;
use landmark_formats::safetensors::{TensorSource, write_safetensors_to};
use landmark_formats::tensor::DType as Stored;
use landmark_model::engine::Engine;
use landmark_model::generate::{Generator, Settings, fitting_chunk, fitting_top_k};
use landmark_model::huggingface;
use landmark_model::model::{CacheShape, Room};
use landmark_model::reader::PredictAt;
use landmark_model::record::Granularity;
use landmark_model::sample::Sampling;
use landmark_probe::case::Suite;
use landmark_probe::filler::Filler;
use landmark_probe::passkey::{Passkey, Unit};
use landmark_web::files::ModelFiles;
use landmark_web::prompt::{Hay, Hidden};
use landmark_web::recall::{Alone, LONGEST_QUESTION, Recall};
use landmark_web::text::Text;
use pollster::block_on;

const CONFIG: &str = r#"{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32,
    "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "max_position_embeddings": 128, "vocab_size": 322, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
    "hidden_act": "silu", "mem_id": 321, "mem_freq": 15, "include_landmark_in_loss": true, "eos_token_id": 0,
    "bos_token_id": null, "tie_word_embeddings": false}"#;

/// Files of a model with weights large enough that tokens differ.
fn files() -> ModelFiles {
    let folder = tempfile::tempdir().unwrap();
    let text = Passkey { unit: Unit::Characters, lengths: vec![20_000], ..Passkey::released(1) };
    let text = Passkey { filler: Filler::Prose, ..text };
    let case = text.make(&text.keys()[0], &|text| Ok(text.len())).unwrap();
    std::fs::write(folder.path().join("a.txt"), case.prompt).unwrap();
    let tokenizer = learn_vocabulary(folder.path(), 320, true).unwrap();

    let config = huggingface::config(&huggingface::parse(CONFIG.as_bytes()).unwrap()).unwrap();
    let room = settings(&config, false).0.room(&config, CacheShape::None, 1);
    let engine = Engine::new(Cpu::<f32>::new(), config, room).unwrap();
    let sources = engine.model().weights.parameters.iter().map(|parameter| {
        let scale = if parameter.shape.len() == 2 { 8.0 } else { 1.0 };
        let values = parameter.initial(5, 0).into_iter().map(|x| x * scale);
        let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
        TensorSource::new(&parameter.name, Stored::F32, parameter.shape.clone(), bytes)
    });
    let mut weights = Vec::new();
    write_safetensors_to(&mut weights, "test", sources, &Default::default()).unwrap();
    ModelFiles::parse(CONFIG.as_bytes(), tokenizer.as_bytes(), weights).unwrap()
}

fn settings(config: &landmark_model::config::ModelConfig, lookups: bool) -> (Settings, usize) {
    let top_k = fitting_top_k(config.context, 16, 5);
    let settings = Settings {
        sampling: Sampling::default(),
        seed: 0,
        chunk: fitting_chunk(config.context, 16, top_k),
        selection: Granularity::PerTokenAndHead,
        miss_cutoff: None,
        predict: PredictAt::of(config),
        lookups,
    };
    (settings, top_k)
}

/// The answer that a prompt gets when it is read whole.
fn expected(files: &ModelFiles, prompt: &str, count: usize) -> String {
    expected_of(files, &files.tokenizer.encode(prompt).unwrap(), count)
}

fn expected_of(files: &ModelFiles, tokens: &[u32], count: usize) -> String {
    let (settings, top_k) = settings(&files.config, false);
    let cache = CacheShape::Mem { blocks: tokens.len() / 15 + 9, block: 16, top_k };
    let room = Room { compute: DType::F32, ..settings.room(&files.config, cache, 1) };
    let mut engine = Engine::new(Cpu::<f32>::new(), files.config.clone(), room).unwrap();
    engine.load(|name| files.find(name)).unwrap();
    let mut generator = Generator::new(&mut engine, settings, 1).unwrap();
    block_on(generator.read(&[tokens], |_| ())).unwrap();
    let answer: Vec<u32> = (0..count).map(|_| block_on(generator.next()).unwrap()[0].unwrap()).collect();
    files.tokenizer.decode(&answer)
}

fn answer(recall: &mut Recall<Cpu<f32>>, files: &ModelFiles, count: usize) -> String {
    let mut said = String::new();
    for _ in 0..count {
        match block_on(recall.next(files)).unwrap() {
            Some(more) => said = more,
            None => break,
        }
    }
    said
}

fn hidden(files: &ModelFiles, length: usize) -> Hidden {
    Hidden::new(&files.tokenizer, Hay::Filler(Filler::Prose), length, 0.4, 3).unwrap()
}

#[test]
fn questions_get_the_answers_that_a_prompt_read_whole_gets() {
    let files = files();
    let made = hidden(&files, 700);
    let text = Text::new(&files, made.text.clone(), 700).unwrap();
    let mut recall = Recall::new(Cpu::new(), &files, text.tokens().len(), DType::F32).unwrap();
    let mut steps = 0;
    while !recall.is_done(&text) {
        let before = block_on(recall.read(&text, 2)).unwrap();
        assert!(before <= text.tokens().len());
        steps += 1;
    }
    assert!(steps > 3, "it is read in pieces");
    let mut said = Vec::new();
    for question in [made.question.as_str(), "Who was it that", made.question.as_str()] {
        block_on(recall.ask(&files, &text, question)).unwrap();
        let whole = expected(&files, &format!("{}{question}", made.text), 12);
        let found = answer(&mut recall, &files, 12);
        assert!(
            whole.starts_with(found.trim_end_matches('\u{FFFD}')) && found.len() > 3,
            "{found:?} {whole:?}"
        );
        let lookups = block_on(recall.lookups()).unwrap();
        assert_eq!((lookups.len(), lookups[0].len()), (2, 2), "by layer and head");
        let blocks = lookups.iter().flatten().flatten().map(|fetched| fetched.block);
        assert!(blocks.clone().count() >= 4 && blocks.max().unwrap() <= text.blocks() + 3);
        said.push(found);
    }
    assert_eq!(said[0], said[2], "a question between leaves nothing behind");
    assert_ne!(said[0], said[1]);

    // The memory is used again for another text, and knows nothing of the first.
    assert!(recall.fits(&files, 600) && !recall.fits(&files, 60_000));
    recall.clear();
    let other = Text::new(&files, "Nothing is hidden here. ".repeat(60), 700).unwrap();
    assert!(block_on(recall.ask(&files, &other, "What?")).unwrap_err().to_string().contains("read the text"));
    while !recall.is_done(&other) {
        block_on(recall.read(&other, 1)).unwrap();
    }
    block_on(recall.ask(&files, &other, "What?")).unwrap();
    let whole = expected(&files, &format!("{}What?", "Nothing is hidden here. ".repeat(60)), 8);
    assert!(whole.starts_with(answer(&mut recall, &files, 8).trim_end_matches('\u{FFFD}')));
}

/// Of a long text the model sees what one window holds; a text that fits is answered as with the memory.
#[test]
fn without_a_memory_the_end_of_the_text_is_all_there_is() {
    let files = files();
    let window = files.config.context;
    let mut alone = Alone::new(Cpu::<f32>::new(), &files, DType::F32).unwrap();
    let mut said = |text: &Text, question: &str, seen: usize| {
        assert_eq!(block_on(alone.ask(&files, text, question)).unwrap(), seen);
        let mut said = String::new();
        for _ in 0..6 {
            said = block_on(alone.next(&files)).unwrap().unwrap_or(said);
        }
        said.trim_end_matches('\u{FFFD}').to_owned()
    };
    let made = hidden(&files, 600);
    let long = Text::new(&files, made.text.clone(), 600).unwrap();
    let tokens = files.tokenizer.encode(&format!("{}{}", made.text, made.question)).unwrap();
    let end = expected_of(&files, &tokens[tokens.len() - window..], 6);
    let first = said(&long, &made.question, window);
    assert!(end.starts_with(&first) && !first.is_empty(), "{first:?} {end:?}");

    let (words, question) = ("Nothing is hidden here. ".repeat(6), "What?");
    let short = Text::new(&files, words.clone(), 600).unwrap();
    let whole = files.tokenizer.encode(&format!("{words}{question}")).unwrap();
    assert!(whole.len() < window, "{}", whole.len());
    let found = said(&short, question, whole.len());
    assert!(expected_of(&files, &whole, 6).starts_with(&found) && !found.is_empty(), "{found:?}");
    assert_eq!(said(&long, &made.question, window), first, "nothing is left of another text");
}

#[test]
fn prompts_are_those_of_the_command_line() {
    let files = files();
    let made = hidden(&files, 900);
    let suite = Passkey {
        lengths: vec![900],
        unit: Unit::Tokens,
        depths: vec![0.4],
        tests: 50,
        filler: Filler::Prose,
        seed: 3,
    };
    let count = |text: &str| Ok(files.tokenizer.encode(text)?.len());
    let case = suite.make(&suite.keys()[0], &count).unwrap();
    assert_eq!(format!("{}{}", made.text, made.question), case.prompt);
    assert_eq!(made.expected, case.expected[0]);
    let own = Hidden::new(&files.tokenizer, Hay::Own("Kein Mensch war da. "), 400, 0.5, 1).unwrap();
    assert!(own.text.contains("\nKein") && own.text[own.needle.clone()].contains(&own.expected));
    assert!(Hidden::new(&files.tokenizer, Hay::Own("a"), 10, 0.5, 1).is_err(), "no room for the question");
}

#[test]
fn blocks_are_the_text_and_the_key_stands_where_it_is_said_to() {
    let files = files();
    let made = hidden(&files, 500);
    let text = Text::new(&files, made.text.clone(), 500).unwrap();
    let blocks: Vec<String> = (0..text.blocks()).map(|block| text.block(&files, block)).collect();
    assert_eq!(blocks.concat(), made.text);
    assert_eq!(text.block(&files, usize::MAX), "");
    let (first, last) = text.blocks_of(&files, made.needle.clone()).unwrap();
    assert!(blocks[first..=last].concat().contains(&made.text[made.needle.clone()]));
    assert!(last - first <= 4 && !blocks[..first].concat().contains(&made.expected));

    let cut = Text::new(&files, made.text.clone(), 100).unwrap();
    assert!(cut.is_cut() && cut.tokens().len() == 100 && !text.is_cut());
    let more = cut.followed_by(&files, "Why", 90).unwrap();
    assert_eq!(more[..10], cut.tokens()[90..]);
    assert_eq!(files.tokenizer.decode(&more[10..]), "Why", "what was left away does not come back");
}

/// However long the text, and wherever the question is cut off from it.
#[test]
fn a_question_behind_a_text_gives_the_tokens_of_both_together() {
    let files = files();
    for length in [1_000, 20_000] {
        let source = hidden(&files, length).text;
        for question in [" What is the pass key?", "s of it", "9", ""] {
            let text = Text::new(&files, source.clone(), usize::MAX).unwrap();
            let together = files.tokenizer.encode(&format!("{source}{question}")).unwrap();
            for from in [0, length / 3, text.tokens().len() - 40] {
                let found = text.followed_by(&files, question, from).unwrap();
                assert_eq!(found, together[from..], "{length}, {question:?}, {from}");
            }
        }
        // A text that was cut ends with its last token, whatever follows.
        let text = Text::new(&files, source.clone(), length / 2).unwrap();
        let mut expected = text.tokens().to_vec();
        files.tokenizer.encode_ordinary_into("9", &mut expected).unwrap();
        assert_eq!(text.followed_by(&files, "9", 0).unwrap(), expected);
    }
}

#[test]
fn what_cannot_be_read_or_asked_is_refused_with_a_reason() {
    let files = files();
    let text = Text::new(&files, "A few words.".into(), 100).unwrap();
    let mut recall = Recall::new(Cpu::<f32>::new(), &files, 10, DType::F32).unwrap();
    let long = "word ".repeat(3 * LONGEST_QUESTION);
    let error = block_on(recall.ask(&files, &text, &long)).unwrap_err();
    assert!(
        error.to_string().contains("The question has") && error.kind() == "LandmarkInputError",
        "{error}"
    );

    let parse = |config: &str, tokenizer: &[u8], weights: Vec<u8>| {
        ModelFiles::parse(config.as_bytes(), tokenizer, weights).unwrap_err()
    };
    let tokenizer =
        br#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
        "pre_tokenizer":null,"post_processor":null,"decoder":null,
        "model":{"type":"WordLevel","vocab":{"a":0,"</s>":1},"unk_token":"a"}}"#;
    let plain = CONFIG.replace(r#""mem_freq": 15, "#, "").replace(r#""mem_id": 321, "#, "");
    for (error, file) in [
        (parse("{", tokenizer, Vec::new()), "config.json"),
        (parse(&plain, tokenizer, Vec::new()), "config.json"),
        (parse(CONFIG, b"{}", Vec::new()), "tokenizer.json"),
        (parse(CONFIG, tokenizer, b"torn".to_vec()), "model.safetensors"),
    ] {
        assert!(error.to_string().starts_with(file) && error.kind() == "LandmarkModelError", "{error}");
    }
}
