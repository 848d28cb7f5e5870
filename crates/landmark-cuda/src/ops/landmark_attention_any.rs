//! Landmark attention with every feature of the op, in f32 arithmetic (`kernels/landmark_attention_any.cu`).
//!
//! Scores lie in the workspace, a slice of them at a time: as many key heads as fit, or one and as many of its queries as
//! fit. Slices of one key head follow each other and add up its dk and dv.

use crate::attention::{Attention, Gradients, HeadsAt, LandmarksAt, Launches, Struct};
use crate::compile::{Defines, Variant};
use crate::plan::{Kernel, args};
use landmark_core::ops::Heads;
use landmark_core::{DType, Result};

const FILE: &str = "landmark_attention_any.cu";
/// As in the kernel file: rows and columns of a tile, threads of a product, threads of a row.
const TILE: usize = 64;
const THREADS: u32 = 256;
const ROW_THREADS: u32 = 128;
/// Bytes of scores (and of their gradients) at a time.
const WORKSPACE: usize = 256 << 20;
/// Heads of a slice are a grid's second or third extent, of which a device takes 65535.
const MOST_HEADS: usize = 32768;

/// Definitions: the type of every operand, `q`'s for the gradients in a forward pass.
fn defines(types: [DType; 8]) -> Defines {
    let names = ["Q_T", "K_T", "V_T", "O_T", "DO_T", "DQ_T", "DK_T", "DV_T"];
    names.into_iter().zip(types).fold(Defines::new(), |defines, (name, dtype)| defines.dtype(name, dtype))
}

pub(super) fn variants() -> Vec<Variant> {
    [DType::F32, DType::Bf16, DType::F16].map(|dtype| Variant::new(FILE, defines([dtype; 8]))).into()
}

pub(super) fn forward(attention: &Attention, to: &mut dyn Launches) -> Result<()> {
    launch(attention, None, to)
}

pub(super) fn backward(gradients: &Gradients, to: &mut dyn Launches) -> Result<()> {
    launch(&gradients.forward, Some(gradients), to)
}

/// A slice: key heads (numbered `b · kv_heads + h`), queries.
#[derive(Clone, Copy, Debug)]
struct Slice {
    first_head: usize,
    heads: usize,
    first_query: usize,
    queries: usize,
}

/// How many key heads and how many queries go at a time, where a row of scores has `ld` elements in each of `slabs`.
fn at_once(h: &Heads, ld: usize, slabs: usize) -> (usize, usize) {
    let group = h.heads / h.kv_heads;
    let rows = WORKSPACE / (4 * slabs * ld);
    if rows >= group * h.queries {
        let most = (MOST_HEADS / group).max(1);
        ((rows / (group * h.queries)).min(most).min(h.batch * h.kv_heads), h.queries)
    } else {
        (1, (rows / group / TILE * TILE).max(TILE).min(h.queries))
    }
}

fn launch(a: &Attention, back: Option<&Gradients>, to: &mut dyn Launches) -> Result<()> {
    let h = a.heads;
    let (ld, group) = (h.keys.next_multiple_of(TILE), h.heads / h.kv_heads);
    let (heads, queries) = at_once(&h, ld, if back.is_some() { 2 } else { 1 });
    let miss = usize::from(a.miss.is_some());
    let tokens = h.keys - miss;

    let gradients = back.map(|g| [g.dout, g.dq, g.dk, g.dv]);
    let [dout, dq, dk, dv] = gradients.map_or([a.q.dtype; 4], |sides| sides.map(|side| side.dtype));
    let defines = defines([a.q.dtype, a.k.dtype, a.v.dtype, a.out.dtype, dout, dq, dk, dv]);
    let mut kernel = |name: &'static str| to.kernel(FILE, name, defines.clone());
    let steps: Vec<(Kernel, Grid)> = if back.is_some() {
        vec![
            (kernel("any_scores")?, Grid::Scores),
            (kernel("any_score_gradients")?, Grid::Scores),
            (kernel("any_weight_gradients")?, Grid::Rows),
            (kernel("any_dq")?, Grid::Queries),
            (kernel("any_dk")?, Grid::Keys),
            (kernel("any_dv")?, Grid::Keys),
        ]
    } else {
        vec![
            (kernel("any_scores")?, Grid::Scores),
            (kernel("any_weights")?, Grid::Rows),
            (kernel("any_values")?, Grid::Queries),
        ]
    };
    let list_landmarks = kernel("any_landmarks")?;

    let slab = (4 * heads * group * queries * ld) as u64;
    let scores = to.workspace(slab);
    let score_gradients = if back.is_some() { to.workspace(slab) } else { 0 };
    let in_slices = back.is_some() && queries < h.queries;
    let sum = if in_slices { (4 * heads * h.keys * h.head_dim) as u64 } else { 0 };
    let (dk_sum, dv_sum) = (to.workspace(sum), to.workspace(sum));
    let (block, phases, is_landmark) = match a.landmarks {
        LandmarksAt::Nowhere => (0, 0, 0),
        LandmarksAt::Regular { block, phases } => (block as i32, phases, 0),
        LandmarksAt::Anywhere { is_landmark } => (-1, 0, is_landmark),
    };
    let words = if is_landmark == 0 { 0 } else { 4 * (h.batch * (tokens + 1)) as u64 };
    let (list, before) = (to.workspace(words), to.workspace(words));
    let [dout, dq, dk, dv] = gradients.map_or([HeadsAt::default(); 4], |sides| sides.map(|side| side.at));
    let arguments = |s: Slice| {
        Struct::default()
            .heads(a.q.at)
            .heads(a.k.at)
            .heads(a.v.at)
            .heads(a.out.at)
            .heads(dout)
            .heads(dq)
            .heads(dk)
            .heads(dv)
            .address(a.lse)
            .address(phases)
            .address(is_landmark)
            .address(a.miss.unwrap_or(0))
            .address(a.first_key)
            .address(a.randomness.seed)
            .address(scores)
            .address(score_gradients)
            .address(dk_sum)
            .address(dv_sum)
            .address(list)
            .address(before)
            .int(h.batch)
            .int(h.queries)
            .int(h.keys)
            .int(h.heads)
            .int(h.kv_heads)
            .int(h.head_dim)
            .signed(block)
            .int(miss)
            .int(ld)
            .int(s.first_head)
            .int(s.heads)
            .int(s.first_query)
            .int(s.queries)
            .int(usize::from(s.first_query == 0))
            .int(usize::from(s.first_query + s.queries == h.queries))
            .float(a.scale)
            .word(a.randomness.salt)
            .float(a.randomness.dropout)
            .float(a.randomness.group_dropout)
            .finish(368)
    };
    if is_landmark != 0 {
        let whole = Slice { first_head: 0, heads, first_query: 0, queries };
        let args = args![arguments(whole)];
        to.launch(&list_landmarks, [h.batch as u32, 1, 1], THREADS, 0, args)?;
    }
    for first_head in (0..h.batch * h.kv_heads).step_by(heads) {
        for first_query in (0..h.queries).step_by(queries) {
            let slice = Slice {
                first_head,
                heads: heads.min(h.batch * h.kv_heads - first_head),
                first_query,
                queries: queries.min(h.queries - first_query),
            };
            for (kernel, grid) in &steps {
                let args = args![arguments(slice)];
                let (extents, threads) = grid.of(slice, group, ld, h.head_dim);
                to.launch(kernel, extents, threads, 0, args)?;
            }
        }
    }
    Ok(())
}

/// What the thread blocks of a launch are.
#[derive(Clone, Copy, Debug)]
enum Grid {
    /// Tiles of scores.
    Scores,
    /// Rows of scores.
    Rows,
    /// Tiles of what belongs to queries.
    Queries,
    /// Tiles of what belongs to keys.
    Keys,
}

impl Grid {
    /// Extents, and threads of a block.
    fn of(self, s: Slice, group: usize, ld: usize, head_dim: usize) -> ([u32; 3], u32) {
        let tiles = |n: usize| n.div_ceil(TILE);
        let (extents, threads) = match self {
            Grid::Scores => ([tiles(ld), tiles(s.queries), s.heads * group], THREADS),
            Grid::Rows => ([s.queries, s.heads * group, 1], ROW_THREADS),
            Grid::Queries => ([tiles(head_dim), tiles(s.queries), s.heads * group], THREADS),
            Grid::Keys => ([tiles(head_dim), tiles(ld), s.heads], THREADS),
        };
        (extents.map(|n| n as u32), threads)
    }
}
