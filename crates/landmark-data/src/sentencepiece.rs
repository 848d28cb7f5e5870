//! SentencePiece's `tokenizer.model`, turned into the `tokenizer.json` that says the same.
//!
//! LLaMA's vocabulary was published as a SentencePiece model: a protobuf message of pieces with scores. Encoding it
//! here anew was rejected: what `transformers` users get is the `tokenizers` crate's encoding of a converted
//! vocabulary, and equal ids matter more than anything. So the conversion is what their converter does, and everything
//! after it is one path for both kinds of file.
//!
//! A BPE model of SentencePiece has no list of merges. Two neighbouring pieces are merged if their concatenation is a
//! piece, the best score first; as a list of merges that is each piece's every division into two pieces, in the
//! order of the scores.
//!
//! The message is <https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto>; fields that
//! decide nothing about encoding are left out.

use std::collections::HashMap;

use base64::Engine as _;
use prost::Message;
use serde_json::{Value, json};

/// A blank, as pieces spell it.
const BLANK: &str = "\u{2581}";

/// Longest piece whose divisions are looked for, in characters; those in use have at most 16, or 48 where blanks or
/// dashes repeat.
const LONGEST_PIECE: usize = 256;

/// Most pieces; the largest vocabularies in use have a quarter of that.
const MOST_PIECES: usize = 1 << 20;

/// The score of pieces that text never becomes. Far below any sum of a text's scores, near enough for sums of doubles.
const NEVER: f64 = -1e6;

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<NormalizerSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3", default = "1")] // kind::NORMAL
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct TrainerSpec {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
    #[prost(int32, optional, tag = "40")]
    unk_id: Option<i32>,
    #[prost(int32, optional, tag = "41")]
    bos_id: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct NormalizerSpec {
    #[prost(bytes = "vec", optional, tag = "2")]
    charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    escape_whitespaces: Option<bool>,
}

/// `Piece::kind`.
mod kind {
    pub(super) const NORMAL: i32 = 1;
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const CONTROL: i32 = 3;
    pub(super) const USER_DEFINED: i32 = 4;
    pub(super) const BYTE: i32 = 6;
}

impl Piece {
    fn text(&self) -> &str {
        self.piece.as_deref().unwrap_or_default()
    }
}

/// The `tokenizer.json` of a SentencePiece model. A BOS is put before a text, as LLaMA's own settings ask; a
/// `tokenizer_config.json` may say otherwise.
///
/// # Errors
/// A sentence on what is wrong with the bytes.
pub(crate) fn to_tokenizer_json(bytes: &[u8]) -> Result<Value, String> {
    let model = ModelProto::decode(bytes).map_err(|error| format!("not a SentencePiece model ({error})"))?;
    if model.pieces.is_empty() || model.pieces.len() > MOST_PIECES {
        return Err(format!("not a SentencePiece model (it has {} pieces)", model.pieces.len()));
    }
    let mut ids = HashMap::new();
    for (id, piece) in model.pieces.iter().enumerate() {
        if piece.text().is_empty() || piece.text().chars().nth(LONGEST_PIECE).is_some() {
            return Err(format!("piece {id} is empty or longer than {LONGEST_PIECE} characters"));
        }
        if ids.insert(piece.text(), id).is_some() {
            return Err(format!("piece {id} is there twice"));
        }
        if !piece.score.unwrap_or(0.0).is_finite() {
            return Err(format!("the score of piece {id} is not finite"));
        }
    }
    let trainer = model.trainer.clone().unwrap_or_default();
    let normalizer = model.normalizer.clone().unwrap_or_default();
    if normalizer.escape_whitespaces == Some(false) {
        return Err("blanks are not escaped in it, which is not supported; give a tokenizer.json".to_owned());
    }
    let encoder = match trainer.model_type.unwrap_or(1) {
        1 => unigram(&model.pieces, &trainer)?,
        2 => bpe(&model.pieces, &ids, &trainer),
        other => {
            let expected = "only unigram (1) and BPE (2) models are read; give a tokenizer.json";
            return Err(format!("it is a SentencePiece model of type {other}: {expected}"));
        }
    };
    let prefixes = normalizer.add_dummy_prefix.unwrap_or(true);
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(&model.pieces),
        "normalizer": normalizers(&normalizer, prefixes),
        "pre_tokenizer": null,
        "post_processor": post_processor(&model.pieces, &trainer),
        "decoder": decoders(prefixes),
        "model": encoder,
    }))
}

fn bpe(pieces: &[Piece], ids: &HashMap<&str, usize>, trainer: &TrainerSpec) -> Value {
    let merges: Vec<Value> = merges(pieces, ids).into_iter().map(|pair| json!(pair)).collect();
    let vocabulary: serde_json::Map<String, Value> =
        pieces.iter().enumerate().map(|(id, piece)| (piece.text().to_owned(), json!(id))).collect();
    json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": unknown(pieces, trainer).map(|(_, piece)| piece.text()),
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": true,
        "byte_fallback": falls_back(pieces, trainer),
        "ignore_merges": false,
        "vocab": vocabulary,
        "merges": merges,
    })
}

/// Every division of a piece into two pieces, the best piece first. Of one piece, the division with the smaller ids.
fn merges<'p>(pieces: &'p [Piece], ids: &HashMap<&str, usize>) -> Vec<(&'p str, &'p str)> {
    // Only what text can become takes part: bytes, controls and user-defined symbols are never merged.
    let id = |part: &str| ids.get(part).copied().filter(|&id| pieces[id].kind() == kind::NORMAL);
    let mut order: Vec<usize> = (0..pieces.len()).filter(|&i| pieces[i].kind() == kind::NORMAL).collect();
    let score = |i: usize| pieces[i].score.unwrap_or(0.0);
    order.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
    let mut merges = Vec::new();
    for i in order {
        let text = pieces[i].text();
        let cuts = text.char_indices().skip(1).map(|(cut, _)| text.split_at(cut));
        let mut divisions: Vec<_> =
            cuts.filter_map(|(left, right)| Some(((id(left)?, id(right)?), (left, right)))).collect();
        divisions.sort_by_key(|&(ids, _)| ids);
        merges.extend(divisions.into_iter().map(|(_, pair)| pair));
    }
    merges
}

fn unigram(pieces: &[Piece], trainer: &TrainerSpec) -> Result<Value, String> {
    let Some((unk_id, _)) = unknown(pieces, trainer) else {
        return Err("it has no piece for what is unknown".to_owned());
    };
    // SentencePiece looks for pieces of text only; the library that encodes here looks for all of them. A score this low
    // keeps text from becoming a control or a byte by being spelt like one, as long as its letters have pieces.
    let score = |piece: &Piece| match piece.kind() {
        kind::NORMAL | kind::USER_DEFINED => f64::from(piece.score.unwrap_or(0.0)),
        _ => NEVER,
    };
    let vocabulary: Vec<Value> = pieces.iter().map(|piece| json!([piece.text(), score(piece)])).collect();
    let byte_fallback = falls_back(pieces, trainer);
    Ok(json!({"type": "Unigram", "unk_id": unk_id, "vocab": vocabulary, "byte_fallback": byte_fallback}))
}

/// The piece for what is unknown.
fn unknown<'p>(pieces: &'p [Piece], trainer: &TrainerSpec) -> Option<(usize, &'p Piece)> {
    let named = trainer.unk_id.and_then(|id| usize::try_from(id).ok()).unwrap_or(0);
    let is_unknown = |&id: &usize| pieces[id].kind() == kind::UNKNOWN;
    let id = Some(named).filter(|&id| id < pieces.len()).filter(is_unknown);
    let id = id.or_else(|| (0..pieces.len()).find(is_unknown))?;
    Some((id, &pieces[id]))
}

/// Whether characters without a piece become their bytes.
fn falls_back(pieces: &[Piece], trainer: &TrainerSpec) -> bool {
    trainer.byte_fallback.unwrap_or(false) && pieces.iter().any(|piece| piece.kind() == kind::BYTE)
}

/// Controls, which text never becomes, and symbols that are cut out of it before anything else.
fn added_tokens(pieces: &[Piece]) -> Vec<Value> {
    let is_added = |kind| [kind::UNKNOWN, kind::CONTROL, kind::USER_DEFINED].contains(&kind);
    let added = pieces.iter().enumerate().filter(|(_, piece)| is_added(piece.kind()));
    added.map(|(id, piece)| added_token(id, piece.text(), piece.kind() != kind::USER_DEFINED)).collect()
}

/// One entry of `added_tokens`.
pub(crate) fn added_token(id: usize, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": special})
}

fn normalizers(spec: &NormalizerSpec, prefixes: bool) -> Value {
    let mut all = Vec::new();
    if let Some(charsmap) = spec.charsmap.as_ref().filter(|charsmap| !charsmap.is_empty()) {
        let encoded = base64::engine::general_purpose::STANDARD.encode(charsmap);
        all.push(json!({"type": "Precompiled", "precompiled_charsmap": encoded}));
    }
    if spec.remove_extra_whitespaces.unwrap_or(true) {
        all.push(json!({"type": "Strip", "strip_left": true, "strip_right": true}));
        all.push(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}));
    }
    if prefixes {
        all.push(json!({"type": "Prepend", "prepend": BLANK}));
    }
    all.push(json!({"type": "Replace", "pattern": {"String": " "}, "content": BLANK}));
    json!({"type": "Sequence", "normalizers": all})
}

fn decoders(prefixes: bool) -> Value {
    let mut all = vec![
        json!({"type": "Replace", "pattern": {"String": BLANK}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefixes {
        all.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": all})
}

fn post_processor(pieces: &[Piece], trainer: &TrainerSpec) -> Value {
    let named = usize::try_from(trainer.bos_id.unwrap_or(1)).ok();
    let bos = named.and_then(|id| Some((id, pieces.get(id)?))).filter(|(_, bos)| bos.kind() == kind::CONTROL);
    match bos {
        Some((id, bos)) => template(Some((id, bos.text())), None),
        None => Value::Null,
    }
}

/// A post-processor that puts tokens before and after a text.
pub(crate) fn template(before: Option<(usize, &str)>, after: Option<(usize, &str)>) -> Value {
    let around = |sequence: &str, kind: usize| {
        let token = |(_, name): (usize, &str)| json!({"SpecialToken": {"id": name, "type_id": kind}});
        let text = json!({"Sequence": {"id": sequence, "type_id": kind}});
        before.map(token).into_iter().chain([text]).chain(after.map(token)).collect::<Vec<_>>()
    };
    let mut special = serde_json::Map::new();
    for (id, name) in before.into_iter().chain(after) {
        special.insert(name.to_owned(), json!({"id": name, "ids": [id], "tokens": [name]}));
    }
    let pair = [around("A", 0), around("B", 1)].concat();
    json!({
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": pair,
        "special_tokens": special,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Tokenizer;

    /// A small model: controls, bytes, letters, and merges of "the cat" whose order matters.
    pub(crate) fn model(model_type: i32, normalizer: (bool, bool), user_defined: &str) -> Vec<u8> {
        let piece = |text: &str, score: f32, kind: i32| Piece {
            piece: Some(text.to_owned()),
            score: Some(score),
            kind: Some(kind),
        };
        let mut pieces = vec![
            piece("<unk>", 0.0, kind::UNKNOWN),
            piece("<s>", 0.0, kind::CONTROL),
            piece("</s>", 0.0, kind::CONTROL),
        ];
        pieces.extend((0..256).map(|byte| piece(&format!("<0x{byte:02X}>"), 0.0, kind::BYTE)));
        if !user_defined.is_empty() {
            pieces.push(piece(user_defined, 0.0, kind::USER_DEFINED));
        }
        for (i, text) in
            ["\u{2581}t", "he", "\u{2581}the", "ca", "at", "\u{2581}c", "\u{2581}cat", "\u{2581}\u{2581}"]
                .into_iter()
                .chain(["\u{2581}", "t", "h", "e", "c", "a", "1", "2", "\n", "é"])
                .enumerate()
        {
            pieces.push(piece(text, -(i as f32) - 1.0, kind::NORMAL));
        }
        let trainer = TrainerSpec {
            model_type: Some(model_type),
            byte_fallback: Some(true),
            unk_id: Some(0),
            bos_id: Some(1),
        };
        let (add_dummy_prefix, remove_extra_whitespaces) = normalizer;
        let normalizer = NormalizerSpec {
            add_dummy_prefix: Some(add_dummy_prefix),
            remove_extra_whitespaces: Some(remove_extra_whitespaces),
            ..NormalizerSpec::default()
        };
        ModelProto { pieces, trainer: Some(trainer), normalizer: Some(normalizer) }.encode_to_vec()
    }

    const BPE: i32 = 2;

    fn pieces_of(model: &[u8], text: &str) -> Vec<String> {
        let json = to_tokenizer_json(model).unwrap();
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), "model", None).unwrap();
        let ids = tokenizer.encode_ordinary(text).unwrap();
        assert_eq!(tokenizer.decode(&ids), text, "nothing is lost");
        let names: HashMap<u64, &String> = json["model"]["vocab"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, id)| (id.as_u64().unwrap(), name))
            .collect();
        ids.iter().map(|&id| names[&u64::from(id)].replace(BLANK, "_")).collect()
    }

    /// Worked by hand: the best-scored pair of neighbours is merged first. In "_cat" that is `ca`, after which neither
    /// `at` nor `_c` has its letters left, though `_cat` is a piece.
    #[test]
    fn pieces_are_merged_by_score() {
        let model = model(BPE, (true, false), "");
        assert_eq!(pieces_of(&model, "the cat"), ["_the", "_", "ca", "t"]);
        assert_eq!(pieces_of(&model, "the  cat"), ["_the", "__", "ca", "t"]);
        assert_eq!(
            pieces_of(&model, " at"),
            ["__", "at"],
            "a blank is put before a text, even before a blank"
        );
        assert_eq!(pieces_of(&model, "12\n"), ["_", "1", "2", "\n"]);
        assert_eq!(
            pieces_of(&model, "é中"),
            ["_", "é", "<0xE4>", "<0xB8>", "<0xAD>"],
            "bytes where no piece is"
        );
        assert_eq!(pieces_of(&model, ""), [""; 0]);
        assert_eq!(pieces_of(&model, "a<s></s>").len(), 9, "names of controls are text");
    }

    #[test]
    fn blanks_are_treated_as_the_model_says() {
        assert_eq!(pieces_of(&model(BPE, (false, false), ""), "the"), ["t", "he"]);
        let json = to_tokenizer_json(&model(BPE, (true, true), "")).unwrap();
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), "model", None).unwrap();
        let encode = |text| tokenizer.encode_ordinary(text).unwrap();
        assert_eq!(encode("  the   cat "), encode("the cat"));
    }

    #[test]
    fn a_unigram_model_takes_the_best_sum() {
        let json = to_tokenizer_json(&model(1, (true, false), "")).unwrap();
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), "model", None).unwrap();
        let ids = tokenizer.encode_ordinary("the cat").unwrap();
        // `_the` (-3) and `_cat` (-7) against any finer division.
        assert_eq!(ids, [259 + 2, 259 + 6]);
        assert_eq!(tokenizer.decode(&ids), "the cat");
    }

    #[test]
    fn symbols_of_the_user_are_found_in_text_and_controls_are_not() {
        let model = model(BPE, (true, false), "cat");
        let json = to_tokenizer_json(&model).unwrap();
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), "model", None).unwrap();
        assert!(tokenizer.encode_ordinary("the cat").unwrap().contains(&259));
        assert!(!tokenizer.encode_ordinary("the <s>").unwrap().contains(&1));
    }

    #[test]
    fn what_is_no_model_is_refused() {
        let refused = |bytes: &[u8], said: &str| {
            let error = to_tokenizer_json(bytes).unwrap_err();
            assert!(error.contains(said), "{error}");
        };
        refused(b"", "0 pieces");
        refused(b"{}", "not a SentencePiece model");
        refused(&model(4, (true, false), ""), "type 4");
        refused(&model(BPE, (true, false), "</s>"), "twice");
        refused(&model(BPE, (true, false), &"x".repeat(1000)), "longer than");
        let whole = model(BPE, (true, false), "");
        for length in 0..whole.len() {
            let _ = to_tokenizer_json(&whole[..length]);
        }
    }
}
