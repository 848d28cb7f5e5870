//! Token embedding and its gradient.

use super::real::{Real, for_rows};
use super::storage::Memory;
use crate::error::{Error, Result};
use crate::ops::{Embed, EmbedBackward};
use crate::tensor::Tensor;

fn check_tokens<T: Real>(m: &Memory<'_, T>, op: &'static str, tokens: Tensor, vocab: usize) -> Result<()> {
    match m.u32(tokens).iter().find(|&&t| t as usize >= vocab) {
        None => Ok(()),
        Some(&token) => Err(Error::Index {
            op,
            tensor: m.info(tokens).name.clone(),
            index: u64::from(token),
            limit: vocab,
        }),
    }
}

pub(super) fn embed<T: Real>(op: &Embed, m: &mut Memory<'_, T>) -> Result<()> {
    let cols = m.cols(op.table);
    check_tokens(m, "Embed", op.tokens, m.rows(op.table))?;
    let mut out = m.take(op.out);
    let (tokens, table) = (m.u32(op.tokens), m.real(op.table));
    for_rows(&mut out, cols, |(n, row)| row.copy_from_slice(&table[tokens[n] as usize * cols..][..cols]));
    drop(table);
    m.put(op.out, out);
    Ok(())
}

pub(super) fn embed_backward<T: Real>(op: &EmbedBackward, m: &mut Memory<'_, T>) -> Result<()> {
    let cols = m.cols(op.dtable.tensor);
    check_tokens(m, "EmbedBackward", op.tokens, m.rows(op.dtable.tensor))?;
    let mut dtable = m.take(op.dtable.tensor);
    if !op.dtable.add {
        dtable.fill(T::ZERO);
    }
    let (tokens, dout) = (m.u32(op.tokens), m.real(op.dout));
    // One thread: repeated tokens add in the order of the text, and the work is small.
    for (&token, row) in tokens.iter().zip(dout.chunks_exact(cols)) {
        let to = &mut dtable[token as usize * cols..][..cols];
        to.iter_mut().zip(row).for_each(|(to, &x)| *to += x);
    }
    drop(dout);
    m.put(op.dtable.tensor, dtable);
    Ok(())
}
