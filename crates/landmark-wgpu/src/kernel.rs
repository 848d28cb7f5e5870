//! A shader, and what is generated in front of it.
//!
//! A file in `shaders/` is WGSL that any editor can read, but for the declarations of its operands: their element
//! types differ from launch to launch. Those are generated here, each with accessors, so that a kernel is written
//! once for f32, bf16 and f16, for rows of any length, and for operands that may be missing:
//!
//! - `x_quad(e, valid)`: elements `e .. e + 4` as `vec4<f32>`, zero from number `valid` on;
//! - `x_one(e)`: one element; `x_at(e)` for integers, and `x_set(e, v)`;
//! - `x_load(e, valid)`, `x_part(w, i)`, `x_scale(e)`: 16 bytes at a time of weights, part `i` of them as elements
//!   `e + 4i .. e + 4i + 4`, with `x_ZERO` added, and the scale that they share; `x_PARTS` parts make a chunk;
//! - `x_start(e)`, `x_next(start, i, valid)`: elements `e + 4i .. e + 4i + 4`, to be multiplied by `x_scale(e + 4i)`, which is
//!   that of 32 elements;
//! - `x_put(e, v, valid)`: writes elements `e .. e + valid`; `x_put_one(e, v)` writes one.
//!
//! How these touch memory depends on the *alignment* that the launcher promises: 4 when every `e` is a multiple of 4
//! and `valid` always 4 (one load of a vector), 2 when both are even, 1 otherwise. Half types are pairs in 32-bit
//! words, which two threads must not share; so they are written with an alignment of 2 at least.
//!
//! Parameters are a list of names and values from which both the uniform's WGSL struct and its bytes come: the two
//! cannot disagree. Whatever shapes the code rather than the amount of work (widths of heads, flags) is a constant.
//!
//! Rejected: a preprocessor's conditionals, which no editor reads; `override` constants alone, which cannot change a
//! type.

use landmark_core::DType;
use landmark_core::ops::RopeStyle;
use landmark_core::quantize::Bits;
use std::fmt::Write;

/// Kind of a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A small read-only buffer: parameters, or a few integers.
    Uniform,
    /// Storage, read only.
    Read,
    /// Storage, read and written.
    Write,
}

impl Entry {
    pub(crate) fn layout(self, binding: u32) -> wgpu::BindGroupLayoutEntry {
        let ty = match self {
            Entry::Uniform => wgpu::BufferBindingType::Uniform,
            Entry::Read => wgpu::BufferBindingType::Storage { read_only: true },
            Entry::Write => wgpu::BufferBindingType::Storage { read_only: false },
        };
        wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
            count: None,
        }
    }
}

/// Where the bytes of a binding lie.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Resource {
    /// In this buffer.
    Buffer(wgpu::Buffer),
    /// In scratch storage of the plan, by number.
    Scratch(usize),
}

/// What a binding shows.
#[derive(Clone, Debug)]
pub(crate) struct Bound {
    pub(crate) entry: Entry,
    pub(crate) resource: Resource,
    /// Bytes to bind; `None`: all.
    pub(crate) bytes: Option<u64>,
}

/// A value that a kernel takes as a parameter.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Param {
    U32(u32),
    I32(i32),
    F32(f32),
}

impl From<u32> for Param {
    fn from(x: u32) -> Self {
        Param::U32(x)
    }
}
impl From<usize> for Param {
    /// Sizes of tensors: whatever does not fit 32 bits does not fit a binding either.
    fn from(x: usize) -> Self {
        Param::U32(u32::try_from(x).unwrap_or(u32::MAX))
    }
}
impl From<i32> for Param {
    fn from(x: i32) -> Self {
        Param::I32(x)
    }
}
impl From<f32> for Param {
    fn from(x: f32) -> Self {
        Param::F32(x)
    }
}

impl Param {
    fn wgsl(self) -> &'static str {
        match self {
            Param::U32(_) => "u32",
            Param::I32(_) => "i32",
            Param::F32(_) => "f32",
        }
    }

    fn bytes(self) -> [u8; 4] {
        match self {
            Param::U32(x) => x.to_le_bytes(),
            Param::I32(x) => x.to_le_bytes(),
            Param::F32(x) => x.to_le_bytes(),
        }
    }
}

/// A shader with its operands.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    pub(crate) name: &'static str,
    body: &'static str,
    /// Extensions of WGSL that it is written in.
    extensions: Vec<&'static str>,
    declarations: String,
    params: Vec<(&'static str, Param)>,
    pub(crate) bound: Vec<Bound>,
}

/// What every shader may use.
const COMMON: &str = include_str!("shaders/common.wgsl");

impl Kernel {
    pub(crate) fn new(name: &'static str, body: &'static str) -> Self {
        Kernel {
            name,
            body,
            extensions: Vec::new(),
            declarations: String::new(),
            params: Vec::new(),
            bound: Vec::new(),
        }
    }

    /// Names an extension of WGSL that the body is written in.
    pub(crate) fn extension(&mut self, name: &'static str) {
        self.extensions.push(name);
    }

    /// A number that is part of the code.
    pub(crate) fn constant(&mut self, name: &str, value: usize) {
        let _ = writeln!(self.declarations, "const {name}: u32 = {value}u;");
    }

    /// A switch that is part of the code.
    pub(crate) fn flag(&mut self, name: &str, value: bool) {
        let _ = writeln!(self.declarations, "const {name}: bool = {value};");
    }

    /// A number that the code reads: `params.name`.
    pub(crate) fn param(&mut self, name: &'static str, value: impl Into<Param>) {
        self.params.push((name, value.into()));
    }

    /// An operand in storage.
    pub(crate) fn storage(
        &mut self,
        name: &str,
        dtype: DType,
        alignment: usize,
        entry: Entry,
        resource: Resource,
    ) {
        let binding = self.bound.len() + 1;
        let mode = if entry == Entry::Write { "read_write" } else { "read" };
        let element = element(dtype, alignment);
        let _ = writeln!(
            self.declarations,
            "@group(0) @binding({binding}) var<storage, {mode}> {name}: array<{element}>;"
        );
        accessors(&mut self.declarations, name, dtype, alignment, entry == Entry::Write);
        self.bound.push(Bound { entry, resource, bytes: None });
    }

    /// Weights in blocks of 8 or 4 bits, read by elements or in chunks. See [`landmark_core::quantize`].
    pub(crate) fn quantised(&mut self, name: &str, bits: Bits, codes: Resource, scales: Resource) {
        self.raw(name, "vec4<u32>", Entry::Read, codes);
        self.raw(&format!("{name}_scales"), "u32", Entry::Read, scales);
        // A chunk of 16 bytes holds 16 or 32 elements, a block of 32 two chunks or one.
        let (shift, parts, zero, codes) = match bits {
            Bits::Eight => (4, 4, 0, "unpack_q8(w[i])"),
            Bits::Four => (5, 8, 8, "unpack_q4(w[i >> 1u], i & 1u)"),
        };
        let _ = write!(
            self.declarations,
            "const {name}_PARTS: u32 = {parts}u;
const {name}_ZERO: f32 = {zero}.0;
fn {name}_scale(e: u32) -> f32 {{ return unpack_f16({name}_scales[e >> 6u])[(e >> 5u) & 1u]; }}
fn {name}_load(e: u32, valid: u32) -> vec4<u32> {{ return {name}[e >> {shift}u]; }}
fn {name}_part(w: vec4<u32>, i: u32) -> vec4<f32> {{ return {codes}; }}
fn {name}_quad(e: u32, valid: u32) -> vec4<f32> {{
    return {name}_scale(e) * ({name}_part({name}[e >> {shift}u], (e >> 2u) % {name}_PARTS) - {name}_ZERO);
}}
"
        );
    }

    /// The same for threads that work alone: `x_start(e)`, `x_next(start, i, valid)` and `x_scale(e)`. A code comes in the
    /// highest bits of a word and its scale is that much smaller: software has no shifts by different numbers at once.
    pub(crate) fn codes(&mut self, name: &str, bits: Bits, codes: Resource, scales: Resource) {
        self.raw(name, "u32", Entry::Read, codes);
        self.raw(&format!("{name}_scales"), "u32", Entry::Read, scales);
        let (places, code) = match bits {
            Bits::Eight => (24, format!("high_q8({name}[start + i])")),
            Bits::Four => (28, format!("high_q4({name}[(start + i) >> 1u], (start + i) & 1u)")),
        };
        let _ = write!(
            self.declarations,
            "fn {name}_scale(e: u32) -> f32 {{
    return unpack_f16({name}_scales[e >> 6u])[(e >> 5u) & 1u] / f32(1u << {places}u);
}}
fn {name}_start(e: u32) -> u32 {{ return e >> 2u; }}
fn {name}_next(start: u32, i: u32, valid: u32) -> vec4<f32> {{ return {code}; }}
"
        );
    }

    /// The same names for an operand that is not in blocks.
    pub(crate) fn rows(&mut self, name: &str, dtype: DType, alignment: usize) {
        let next = match (alignment, dtype) {
            (4, DType::F32) => format!("return {name}[start + i];"),
            (4, DType::Bf16 | DType::F16) => {
                let kind = if dtype == DType::F16 { "f16" } else { "bf16" };
                format!(
                    "let w = {name}[start + i]; return vec4<f32>(unpack_{kind}(w.x), unpack_{kind}(w.y));"
                )
            }
            _ => format!("return {name}_quad(start + 4u * i, valid);"),
        };
        let shift = if alignment == 4 { " >> 2u" } else { "" };
        let _ = write!(
            self.declarations,
            "fn {name}_scale(e: u32) -> f32 {{ return 1.0; }}
fn {name}_start(e: u32) -> u32 {{ return e{shift}; }}
fn {name}_next(start: u32, i: u32, valid: u32) -> vec4<f32> {{ {next} }}
"
        );
    }

    /// An operand read in chunks of 16 bytes where rows are whole chunks, else in quads.
    pub(crate) fn chunks(
        &mut self,
        name: &str,
        dtype: DType,
        alignment: usize,
        has_octs: bool,
        resource: Resource,
    ) {
        let kind = match dtype {
            DType::Bf16 if has_octs => "bf16",
            DType::F16 if has_octs => "f16",
            _ => {
                self.storage(name, dtype, alignment, Entry::Read, resource);
                let _ = write!(
                    self.declarations,
                    "const {name}_PARTS: u32 = 1u;
const {name}_ZERO: f32 = 0.0;
fn {name}_scale(e: u32) -> f32 {{ return 1.0; }}
fn {name}_load(e: u32, valid: u32) -> vec4<u32> {{ return bitcast<vec4<u32>>({name}_quad(e, valid)); }}
fn {name}_part(w: vec4<u32>, i: u32) -> vec4<f32> {{ return bitcast<vec4<f32>>(w); }}
"
                );
                return;
            }
        };
        self.raw(name, "vec4<u32>", Entry::Read, resource);
        let _ = write!(
            self.declarations,
            "const {name}_PARTS: u32 = 2u;
const {name}_ZERO: f32 = 0.0;
fn {name}_scale(e: u32) -> f32 {{ return 1.0; }}
fn {name}_load(e: u32, valid: u32) -> vec4<u32> {{ return {name}[e >> 3u]; }}
fn {name}_part(w: vec4<u32>, i: u32) -> vec4<f32> {{
    return vec4<f32>(unpack_{kind}(w[2u * i]), unpack_{kind}(w[2u * i + 1u]));
}}
"
        );
    }

    /// An operand in f16 whose rows are whole vectors of 16 bytes: `x_oct(e, valid)`, eight elements in pairs.
    pub(crate) fn octs(&mut self, name: &str, resource: Resource) {
        self.raw(name, "vec4<u32>", Entry::Read, resource);
        let _ = writeln!(
            self.declarations,
            "fn {name}_oct(e: u32, valid: u32) -> vec4<u32> {{ return {name}[e >> 3u]; }}"
        );
    }

    /// The same of an operand that is read in quads: rounded to f16, and zero from element number `valid` on.
    pub(crate) fn octs_of_quads(&mut self, name: &str) {
        let _ = write!(
            self.declarations,
            "fn {name}_oct(e: u32, valid: u32) -> vec4<u32> {{
    let low = {name}_quad(e, min(valid, 4u));
    var high = vec4<f32>(0.0);
    if (valid > 4u) {{
        high = {name}_quad(e + 4u, valid - 4u);
    }}
    return vec4<u32>(
        pack2x16float(low.xy), pack2x16float(low.zw), pack2x16float(high.xy), pack2x16float(high.zw));
}}
"
        );
    }

    /// What an operand with `x_oct` needs besides for kernels that part fetching eight elements from looking at them:
    /// `x_quads(fetched, e)`.
    pub(crate) fn quads_of_octs(&mut self, name: &str) {
        let _ = write!(
            self.declarations,
            "fn {name}_quads(fetched: vec4<u32>, e: u32) -> array<vec4<f16>, 2> {{
    return array<vec4<f16>, 2>(
        vec4<f16>(vec2<f16>(unpack2x16float(fetched.x)), vec2<f16>(unpack2x16float(fetched.y))),
        vec4<f16>(vec2<f16>(unpack2x16float(fetched.z)), vec2<f16>(unpack2x16float(fetched.w))));
}}
"
        );
    }

    /// The same of weights in blocks: `x_oct`, eight codes and their scale, and `x_quads`.
    pub(crate) fn octs_of_codes(&mut self, name: &str, bits: Bits, codes: Resource, scales: Resource) {
        let (element, words, low, high) = match bits {
            Bits::Eight => ("vec2<u32>", "words", "codes_q8(fetched.x)", "codes_q8(fetched.y)"),
            Bits::Four => ("u32", "words, 0u", "codes_q4(fetched.x, 0u)", "codes_q4(fetched.x, 1u)"),
        };
        self.include(include_str!("shaders/codes.wgsl"));
        self.raw(name, element, Entry::Read, codes);
        self.raw(&format!("{name}_scales"), "u32", Entry::Read, scales);
        let _ = write!(
            self.declarations,
            "fn {name}_oct(e: u32, valid: u32) -> vec4<u32> {{
    let words = {name}[e >> 3u];
    return vec4<u32>({words}, {name}_scales[e >> 6u], 0u);
}}
fn {name}_quads(fetched: vec4<u32>, e: u32) -> array<vec4<f16>, 2> {{
    let scale = unpack2x16float(fetched.z)[(e >> 5u) & 1u];
    return array<vec4<f16>, 2>(vec4<f16>(scale * {low}), vec4<f16>(scale * {high}));
}}
"
        );
    }

    /// An operand that no accessor fits.
    pub(crate) fn raw(&mut self, name: &str, element: &str, entry: Entry, resource: Resource) {
        let binding = self.bound.len() + 1;
        let mode = if entry == Entry::Write { "read_write" } else { "read" };
        let _ = writeln!(
            self.declarations,
            "@group(0) @binding({binding}) var<storage, {mode}> {name}: array<{element}>;"
        );
        self.bound.push(Bound { entry, resource, bytes: None });
    }

    /// A small operand, bound as a uniform, which does not count among the eight of a stage.
    pub(crate) fn uniform(&mut self, name: &str, dtype: DType, count: usize, resource: Resource) {
        let binding = self.bound.len() + 1;
        let (element, vectors) = (element(dtype, 1), count.div_ceil(4).max(1));
        let _ = writeln!(
            self.declarations,
            "@group(0) @binding({binding}) var<uniform> {name}: array<vec4<{element}>, {vectors}>;"
        );
        let accessor = if dtype.is_float() { "one" } else { "at" };
        let _ = writeln!(
            self.declarations,
            "fn {name}_{accessor}(e: u32) -> {element} {{ return {name}[e >> 2u][e & 3u]; }}"
        );
        let bytes = Some(16 * vectors as u64);
        self.bound.push(Bound { entry: Entry::Uniform, resource, bytes });
    }

    /// An operand that is not there: reads as zero, and what is written is lost.
    pub(crate) fn absent(&mut self, name: &str) {
        let _ = write!(
            self.declarations,
            "fn {name}_quad(e: u32, valid: u32) -> vec4<f32> {{ return vec4<f32>(0.0); }}\n\
             fn {name}_one(e: u32) -> f32 {{ return 0.0; }}\n\
             fn {name}_at(e: u32) -> u32 {{ return 0u; }}\n\
             fn {name}_set(e: u32, v: u32) {{ }}\n\
             fn {name}_put(e: u32, v: vec4<f32>, valid: u32) {{ }}\n\
             fn {name}_put_one(e: u32, v: f32) {{ }}\n"
        );
    }

    /// Sums of so many vectors over the threads of a workgroup, `combine(&sums, thread)`, by subgroups where the device has
    /// them; and the entry point.
    pub(crate) fn combining(&mut self, sums: usize, has_subgroups: bool) {
        self.constant("SUMS", sums);
        self.working(has_subgroups);
        if has_subgroups {
            self.include(include_str!("shaders/combine_subgroups.wgsl"));
        } else {
            self.include(include_str!("shaders/combine.wgsl"));
        }
    }

    /// An entry point that calls `work(group, groups, thread)`, where wanted with what a thread knows of its subgroup.
    pub(crate) fn working(&mut self, by_subgroups: bool) {
        if by_subgroups {
            self.include(include_str!("shaders/work_subgroups.wgsl"));
        } else {
            self.include(include_str!("shaders/work.wgsl"));
        }
    }

    /// An entry point that calls this function with the number of each thread.
    pub(crate) fn each(&mut self, function: &str) {
        self.include(&include_str!("shaders/each.wgsl").replace('$', function));
    }

    /// Text that several kernels share.
    pub(crate) fn include(&mut self, text: &str) {
        self.declarations.push_str(text);
    }

    /// Reading `name` under another name too: an operand that is changed in place.
    pub(crate) fn alias(&mut self, alias: &str, name: &str) {
        let _ = writeln!(
            self.declarations,
            "fn {alias}_quad(e: u32, valid: u32) -> vec4<f32> {{ return {name}_quad(e, valid); }}"
        );
    }

    /// Declares heads of `head_dim` coordinates, for [`pairs`](Self::pairs).
    pub(crate) fn rotary(&mut self, style: RopeStyle, head_dim: usize) {
        self.constant("HEAD", head_dim);
        self.constant("UNITS", head_dim.div_ceil(8));
        self.flag("HALVES", style == RopeStyle::Halves);
        self.include(include_str!("shaders/pairs.wgsl"));
    }

    /// `x_pairs(start, unit)`: a unit of the head that begins at element `start` of the operand `x`. See `pairs.wgsl`.
    pub(crate) fn pairs(&mut self, name: &str) {
        self.pairs_as(&format!("{name}_pairs"), name);
    }

    /// The same, turned as it is read: by `x_positions` of the operand's rows, which have so many columns.
    pub(crate) fn pairs_to_turn(&mut self, name: &str, cols: usize) {
        self.pairs_as(&format!("{name}_as_stored"), name);
        let _ = write!(
            self.declarations,
            "fn {name}_pairs(start: u32, unit: u32) -> Pairs {{
    let angles = unit_angles(f32({name}_positions_at(start / {cols}u)), unit);
    return turn({name}_as_stored(start, unit), angles);
}}
"
        );
    }

    fn pairs_as(&mut self, function: &str, name: &str) {
        let _ = write!(
            self.declarations,
            "fn {function}(start: u32, unit: u32) -> Pairs {{
    if (HALVES) {{
        let valid = valid_of(4u * unit, HEAD / 2u);
        let e = start + 4u * unit;
        return Pairs({name}_quad(e, valid), {name}_quad(e + HEAD / 2u, valid));
    }}
    let e = start + 8u * unit;
    let low = {name}_quad(e, valid_of(8u * unit, HEAD));
    var high = vec4<f32>(0.0);
    if (8u * unit + 4u < HEAD) {{
        high = {name}_quad(e + 4u, valid_of(8u * unit + 4u, HEAD));
    }}
    return Pairs(vec4<f32>(low.xz, high.xz), vec4<f32>(low.yw, high.yw));
}}
"
        );
    }

    /// `x_put_pairs(start, unit, v)`: writes one.
    pub(crate) fn put_pairs(&mut self, name: &str) {
        let _ = write!(
            self.declarations,
            "fn {name}_put_pairs(start: u32, unit: u32, v: Pairs) {{
    if (HALVES) {{
        let valid = valid_of(4u * unit, HEAD / 2u);
        let e = start + 4u * unit;
        {name}_put(e, v.a, valid);
        {name}_put(e + HEAD / 2u, v.b, valid);
        return;
    }}
    let e = start + 8u * unit;
    {name}_put(e, vec4<f32>(v.a.x, v.b.x, v.a.y, v.b.y), valid_of(8u * unit, HEAD));
    if (8u * unit + 4u < HEAD) {{
        {name}_put(e + 4u, vec4<f32>(v.a.z, v.b.z, v.a.w, v.b.w), valid_of(8u * unit + 4u, HEAD));
    }}
}}
"
        );
    }

    /// The whole shader.
    pub(crate) fn source(&self) -> String {
        let mut source = format!("// {}\n", self.name);
        for name in &self.extensions {
            let _ = writeln!(source, "enable {name};");
        }
        source.push_str("struct Params {\n");
        for (name, value) in &self.params {
            let _ = writeln!(source, "    {name}: {},", value.wgsl());
        }
        source.push_str("}\n@group(0) @binding(0) var<uniform> params: Params;\n");
        source.push_str(&self.declarations);
        source.push_str(COMMON);
        source.push_str(self.body);
        source
    }

    /// The bytes of its parameters.
    pub(crate) fn params(&self) -> Vec<u8> {
        self.params.iter().flat_map(|(_, value)| value.bytes()).collect()
    }

    /// Whether something lies in this memory.
    pub(crate) fn binds(&self, resource: &Resource) -> bool {
        self.bound.iter().any(|bound| bound.resource == *resource)
    }

    /// Bindings in storage so far.
    pub(crate) fn storage_bindings(&self) -> usize {
        self.bound.iter().filter(|bound| bound.entry != Entry::Uniform).count()
    }

    /// Kinds of all bindings, the parameters first.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        std::iter::once(Entry::Uniform).chain(self.bound.iter().map(|b| b.entry)).collect()
    }
}

/// WGSL type of the elements of the array that a tensor is bound as.
fn element(dtype: DType, alignment: usize) -> &'static str {
    match (dtype, alignment) {
        (DType::F32, 4) => "vec4<f32>",
        (DType::F32, 2) => "vec2<f32>",
        (DType::F32, _) => "f32",
        (DType::Bf16 | DType::F16, 4) => "vec2<u32>",
        (DType::Bf16 | DType::F16, _) => "u32",
        (DType::U32, _) => "u32",
        (DType::I32, _) => "i32",
    }
}

fn accessors(to: &mut String, name: &str, dtype: DType, alignment: usize, is_written: bool) {
    match dtype {
        DType::U32 | DType::I32 => {
            let element = element(dtype, 1);
            let _ = writeln!(to, "fn {name}_at(e: u32) -> {element} {{ return {name}[e]; }}");
            if is_written {
                let _ = writeln!(to, "fn {name}_set(e: u32, v: {element}) {{ {name}[e] = v; }}");
            }
        }
        DType::F32 => f32_accessors(to, name, alignment, is_written),
        DType::Bf16 => half_accessors(to, name, "bf16", alignment, is_written),
        DType::F16 => half_accessors(to, name, "f16", alignment, is_written),
    }
}

fn f32_accessors(to: &mut String, name: &str, alignment: usize, is_written: bool) {
    let (one, quad, put) = match alignment {
        4 => (
            format!("return {name}[e >> 2u][e & 3u];"),
            format!("return {name}[e >> 2u];"),
            format!("{name}[e >> 2u] = v;"),
        ),
        2 => (
            format!("return {name}[e >> 1u][e & 1u];"),
            format!(
                "let low = {name}[e >> 1u]; var high = vec2<f32>(0.0); \
                 if (valid > 2u) {{ high = {name}[(e >> 1u) + 1u]; }} return vec4<f32>(low, high);"
            ),
            format!("{name}[e >> 1u] = v.xy; if (valid > 2u) {{ {name}[(e >> 1u) + 1u] = v.zw; }}"),
        ),
        _ => (
            format!("return {name}[e];"),
            format!(
                "var v = vec4<f32>({name}[e], 0.0, 0.0, 0.0); if (valid > 1u) {{ v.y = {name}[e + 1u]; }} \
                 if (valid > 2u) {{ v.z = {name}[e + 2u]; }} if (valid > 3u) {{ v.w = {name}[e + 3u]; }} return v;"
            ),
            format!(
                "{name}[e] = v.x; if (valid > 1u) {{ {name}[e + 1u] = v.y; }} \
                 if (valid > 2u) {{ {name}[e + 2u] = v.z; }} if (valid > 3u) {{ {name}[e + 3u] = v.w; }}"
            ),
        ),
    };
    let _ = writeln!(to, "fn {name}_one(e: u32) -> f32 {{ {one} }}");
    let _ = writeln!(to, "fn {name}_quad(e: u32, valid: u32) -> vec4<f32> {{ {quad} }}");
    if is_written {
        let _ = writeln!(to, "fn {name}_put(e: u32, v: vec4<f32>, valid: u32) {{ {put} }}");
        if alignment == 1 {
            let _ = writeln!(to, "fn {name}_put_one(e: u32, v: f32) {{ {name}[e] = v; }}");
        }
    }
}

fn half_accessors(to: &mut String, name: &str, kind: &str, alignment: usize, is_written: bool) {
    let word = if alignment == 4 { "[e >> 2u][(e >> 1u) & 1u]" } else { "[e >> 1u]" };
    let _ = writeln!(to, "fn {name}_one(e: u32) -> f32 {{ return unpack_{kind}({name}{word})[e & 1u]; }}");
    let quad = match alignment {
        4 => format!("let w = {name}[e >> 2u]; return vec4<f32>(unpack_{kind}(w.x), unpack_{kind}(w.y));"),
        2 => format!(
            "let low = unpack_{kind}({name}[e >> 1u]); var high = vec2<f32>(0.0); \
             if (valid > 2u) {{ high = unpack_{kind}({name}[(e >> 1u) + 1u]); }} return vec4<f32>(low, high);"
        ),
        _ => format!(
            "var v = vec4<f32>({name}_one(e), 0.0, 0.0, 0.0); if (valid > 1u) {{ v.y = {name}_one(e + 1u); }} \
             if (valid > 2u) {{ v.z = {name}_one(e + 2u); }} if (valid > 3u) {{ v.w = {name}_one(e + 3u); }} return v;"
        ),
    };
    let _ = writeln!(to, "fn {name}_quad(e: u32, valid: u32) -> vec4<f32> {{ {quad} }}");
    if !is_written {
        return;
    }
    let put = if alignment == 4 {
        format!("{name}[e >> 2u] = vec2<u32>(pack_{kind}(v.xy), pack_{kind}(v.zw));")
    } else {
        format!(
            "{name}[e >> 1u] = pack_{kind}(v.xy); if (valid > 2u) {{ {name}[(e >> 1u) + 1u] = pack_{kind}(v.zw); }}"
        )
    };
    let _ = writeln!(to, "fn {name}_put(e: u32, v: vec4<f32>, valid: u32) {{ {put} }}");
}
