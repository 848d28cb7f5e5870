//! A vocabulary of one's own: byte-level BPE learned from a corpus.
//!
//! GPT-2's 50,257 tokens make the embedding of a small model ten times larger than everything else in it. For
//! such models a vocabulary of a thousand or two, learned from the text itself, is the better trade. The
//! result is an ordinary `tokenizer.json`.

use std::fs;
use std::path::{Path, PathBuf};

use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper};
use tokenizers::{PreTokenizerWrapper, TokenizerBuilder, TokenizerImpl};

use crate::error::{Error, Result, reading};

/// Ends a document; its id is 0.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// Learns `vocab_size` tokens (at least 257: the bytes and the end of text) from the `.txt` files below
/// `folder`; returns the contents of a `tokenizer.json`. With `single_digits`, each digit of a number is a token: then a
/// number is spelt in one way, whatever stands before it.
///
/// # Errors
/// If a file cannot be read, or the library finds nothing to learn from.
pub fn learn_vocabulary(folder: &Path, vocab_size: usize, single_digits: bool) -> Result<String> {
    let mut files = Vec::new();
    collect(folder, &mut files)?;
    files.sort();
    let texts = files.iter().map(|path| fs::read_to_string(path).map_err(reading(path)));
    let texts = texts.collect::<Result<Vec<String>>>()?;
    let wrong = |error: tokenizers::Error| Error::Tokenizer {
        name: folder.display().to_string(),
        message: format!("no vocabulary could be learned: {error}"),
    };
    let mut trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(vocab_size.max(257))
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .build();
    let bytes = ByteLevel::default().add_prefix_space(false);
    let mut splits = vec![PreTokenizerWrapper::from(bytes)];
    if single_digits {
        splits.insert(0, PreTokenizerWrapper::from(Digits::new(true)));
    }
    let mut tokenizer: TokenizerImpl<
        BPE,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    > = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_pre_tokenizer(Some(PreTokenizerWrapper::from(Sequence::new(splits))))
        .with_decoder(Some(DecoderWrapper::from(bytes)))
        .build()
        .map_err(wrong)?;
    tokenizer.train(&mut trainer, texts.into_iter()).map_err(wrong)?;
    tokenizer.to_string(false).map_err(wrong)
}

/// The `.txt` files of a folder and its folders.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(reading(folder))? {
        let path = entry.map_err(reading(folder))?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "txt") {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tokenizer;

    #[test]
    fn a_learned_vocabulary_is_a_tokenizer_that_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let text = "the pass key is 123, the pass key is 456; Ünïcode 🦀\n".repeat(50);
        fs::write(folder.path().join("a.txt"), &text).unwrap();
        let json = learn_vocabulary(folder.path(), 300, false).unwrap();
        let tokenizer = Tokenizer::from_json(json.as_bytes(), "learned", None).unwrap();
        assert!((257..=300).contains(&tokenizer.vocab_size()), "{}", tokenizer.vocab_size());
        assert_eq!(tokenizer.eot(), 0);
        let ids = tokenizer.encode_ordinary(&text).unwrap();
        assert!(ids.len() < text.len() / 2, "common words became tokens");
        assert_eq!(tokenizer.decode(&ids), text);
    }

    #[test]
    fn digits_stand_alone_where_that_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.txt"), "the pass key is 12345. ".repeat(50)).unwrap();
        let json = learn_vocabulary(folder.path(), 300, true).unwrap();
        let tokenizer = Tokenizer::from_json(json.as_bytes(), "learned", None).unwrap();
        let ids = tokenizer.encode_ordinary("is 12345").unwrap();
        let digits: Vec<String> = ids[ids.len() - 5..].iter().map(|&id| tokenizer.decode(&[id])).collect();
        assert_eq!(digits, ["1", "2", "3", "4", "5"]);
    }

    #[test]
    fn an_empty_folder_teaches_only_bytes_and_a_missing_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("nowhere");
        assert!(learn_vocabulary(&missing, 300, false).unwrap_err().to_string().contains("nowhere"));
    }
}
