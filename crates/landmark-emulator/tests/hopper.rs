//! Copies by the tensor engine and products of a warp group against each other: a box that was loaded with any
//! permutation, multiplied through descriptors of that permutation, gives the plain product. And what is left out by
//! mistake is found.

use half::bf16;
use landmark_emulator::tensor_map::{self, Description};
use landmark_emulator::{Launch, Memory, Module, run};
use std::fmt::Write;

const ROWS: usize = 64;
const INNER: usize = 64;

/// Allows these ranges.
struct Ranges(Vec<(u64, usize)>);

impl Memory for Ranges {
    fn check(&self, address: u64, bytes: usize, _write: bool) -> Result<(), String> {
        let inside =
            |&(from, size): &(u64, usize)| address >= from && address + bytes as u64 <= from + size as u64;
        if self.0.iter().any(inside) { Ok(()) } else { Err(format!("{bytes} bytes at {address:#x}")) }
    }
}

/// What is left out of a kernel.
#[derive(Clone, Copy, PartialEq)]
enum Omit {
    Nothing,
    WaitForLoad,
    WaitForProduct,
    Fence,
}

#[derive(Clone, Copy)]
struct Case {
    columns: usize,
    /// Bytes of the permutation; 0 for none.
    swizzle: usize,
    /// The factor is stored along M or N.
    transposed: [bool; 2],
    a_in_registers: bool,
    omit: Omit,
}

const PLAIN: Case =
    Case { columns: 64, swizzle: 128, transposed: [false; 2], a_in_registers: false, omit: Omit::Nothing };

/// One factor in shared memory: `outer` by 64, in panels of the permutation's width.
struct Factor {
    outer: usize,
    transposed: bool,
    swizzle: usize,
}

impl Factor {
    /// Bytes of a row of a panel.
    fn span(&self) -> usize {
        self.swizzle.max(16)
    }

    /// Rows of a panel, and how many there are.
    fn panels(&self) -> (usize, usize) {
        let width = self.span() / 2;
        if self.transposed { (INNER, self.outer / width) } else { (self.outer, INNER / width) }
    }

    fn panel_bytes(&self) -> usize {
        self.panels().0 * self.span()
    }

    fn bytes(&self) -> usize {
        self.panel_bytes() * self.panels().1
    }

    /// Everything of the descriptor but the address.
    fn descriptor(&self) -> u64 {
        let group = 8 * self.span();
        let (leading, stride) = match (self.swizzle, self.transposed) {
            (0, false) => (self.panel_bytes(), group),
            (0, true) => (group, self.panel_bytes()),
            (_, false) => (16, group),
            (_, true) => (self.panel_bytes(), group),
        };
        let mode: u64 = [(0, 0), (128, 1), (64, 2), (32, 3)].iter().find(|m| m.0 == self.swizzle).unwrap().1;
        (leading as u64 >> 4) << 16 | (stride as u64 >> 4) << 32 | mode << 62
    }

    /// Where the inner step begins.
    fn step(&self, step: usize) -> usize {
        if self.transposed {
            return 16 * step * self.span();
        }
        let width = self.span() / 2;
        16 * step / width * self.panel_bytes() + 16 * step % width * 2
    }

    fn map(&self, address: u64) -> [u64; tensor_map::WORDS] {
        let extents = if self.transposed {
            [self.outer as u64, INNER as u64]
        } else {
            [INNER as u64, self.outer as u64]
        };
        let number = [0, 32, 64, 128].iter().position(|s| *s == self.swizzle).unwrap() as u32;
        let box_ = [self.span() as u32 / 2, self.panels().0 as u32];
        tensor_map::encode(&Description {
            data_type: 9,
            address,
            extents: &extents,
            strides: &[extents[0] * 2],
            box_: &box_,
            steps: &[1, 1],
            interleave: 0,
            swizzle: number,
            fill: 0,
        })
        .expect("a map")
    }
}

impl Case {
    fn factors(&self) -> [Factor; 2] {
        let factor = |outer, transposed| Factor { outer, transposed, swizzle: self.swizzle };
        [factor(ROWS, self.transposed[0]), factor(self.columns, self.transposed[1])]
    }

    fn kernel(&self) -> String {
        let factors = self.factors();
        let bases = [1024, 1024 + factors[0].bytes().next_multiple_of(1024)];
        let results = self.columns / 2;
        let mut text = format!(
            ".version 8.0\n.target sm_90a\n.address_size 64\n.extern .shared .align 1024 .b8 memory[];\n\
             .visible .entry multiply(.param .align 64 .b8 a[128], .param .align 64 .b8 b[128], .param .u64 out, .param .u64 plain)\n{{\n\
             .reg .pred %p<4>;\n.reg .b32 %r<40>;\n.reg .f32 %f<{results}>;\n.reg .b64 %rd<20>;\n\
             mov.u32 %r1, %tid.x;\nmov.u32 %r2, memory;\n\
             setp.ne.s32 %p1, %r1, 0;\n@%p1 bra ready;\n\
             mbarrier.init.shared::cta.b64 [%r2], 1;\nfence.mbarrier_init.release.cluster;\n"
        );
        let total = factors[0].bytes() + factors[1].bytes();
        writeln!(text, "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], {total};").unwrap();
        for (factor, (name, base)) in factors.iter().zip(["a", "b"].iter().zip(bases)) {
            writeln!(text, "mov.b64 %rd1, {name};\ncvta.param.u64 %rd2, %rd1;").unwrap();
            for panel in 0..factor.panels().1 {
                let at = panel * factor.span() / 2;
                let to = base + panel * factor.panel_bytes();
                writeln!(
                    text,
                    "add.s32 %r3, %r2, {to};\nmov.b32 %r4, {at};\nmov.b32 %r5, 0;\n\
                     cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r3], [%rd2, {{%r4, %r5}}], [%r2];"
                )
                .unwrap();
            }
        }
        text += "ready:\nbar.sync 0;\n";
        if self.omit != Omit::WaitForLoad {
            text += "spin:\nmbarrier.try_wait.parity.shared::cta.b64 %p2, [%r2], 0;\n@!%p2 bra spin;\n";
        }
        // Row and column of this thread's first elements.
        text += "shr.u32 %r6, %r1, 5;\nshl.b32 %r6, %r6, 4;\nand.b32 %r7, %r1, 31;\nshr.u32 %r8, %r7, 2;\n\
                 add.s32 %r6, %r6, %r8;\nand.b32 %r9, %r7, 3;\nshl.b32 %r9, %r9, 1;\n";
        let list = (0..results).map(|i| format!("%f{i}")).collect::<Vec<_>>().join(", ");
        if self.omit != Omit::Fence {
            text += "wgmma.fence.sync.aligned;\n";
        }
        for step in 0..INNER / 16 {
            let shape = format!("wgmma.mma_async.sync.aligned.m64n{}k16.f32.bf16.bf16", self.columns);
            let mut operands = Vec::new();
            for (which, factor) in factors.iter().enumerate() {
                if which == 0 && self.a_in_registers {
                    // A is dense there: rows of 64.
                    text += "ld.param.u64 %rd5, [plain];\nmad.lo.s32 %r10, %r6, 64, %r9;\nmul.wide.u32 %rd6, %r10, 2;\n\
                             add.s64 %rd5, %rd5, %rd6;\n";
                    for (register, offset) in [0, 8 * 64, 8, 8 * 64 + 8].iter().enumerate() {
                        let at = 2 * (offset + 16 * step);
                        writeln!(text, "ld.global.b32 %r{}, [%rd5+{at}];", 12 + register).unwrap();
                    }
                    operands.push("{%r12, %r13, %r14, %r15}".to_string());
                    continue;
                }
                let at = bases[which] + factor.step(step);
                let row = 7 + which;
                writeln!(
                    text,
                    "add.s32 %r3, %r2, {at};\nshr.u32 %r3, %r3, 4;\ncvt.u64.u32 %rd{row}, %r3;\nor.b64 %rd{row}, %rd{row}, {};",
                    factor.descriptor()
                )
                .unwrap();
                operands.push(format!("%rd{row}"));
            }
            let transposed = self.transposed.map(u32::from);
            let transposed = if self.a_in_registers {
                transposed[1].to_string()
            } else {
                format!("{}, {}", transposed[0], transposed[1])
            };
            writeln!(
                text,
                "setp.ne.b32 %p3, {step}, 0;\n{shape} {{{list}}}, {}, {}, %p3, 1, 1, {transposed};",
                operands[0], operands[1]
            )
            .unwrap();
        }
        text += "wgmma.commit_group.sync.aligned;\n";
        if self.omit != Omit::WaitForProduct {
            text += "wgmma.wait_group.sync.aligned 0;\n";
        }
        writeln!(
            text,
            "ld.param.u64 %rd3, [out];\nmad.lo.s32 %r10, %r6, {}, %r9;\nmul.wide.u32 %rd4, %r10, 4;\nadd.s64 %rd3, %rd3, %rd4;",
            self.columns
        )
        .unwrap();
        for i in 0..results {
            let at = 4 * (i / 2 % 2 * 8 * self.columns + 8 * (i / 4) + i % 2);
            writeln!(text, "st.global.f32 [%rd3+{at}], %f{i};").unwrap();
        }
        text + "ret;\n}\n"
    }

    /// The kernel's result and the one it should have.
    fn run(&self) -> Result<(Vec<f32>, Vec<f32>), String> {
        let value = |i: usize, j: usize| ((i * 7 + j * 13 + i * j) % 17) as f32 - 8.0;
        let matrix = |outer: usize, transposed: bool, seed: usize| -> Vec<bf16> {
            let at = |o: usize, i: usize| bf16::from_f32(value(o + seed, i));
            if transposed {
                (0..INNER).flat_map(|i| (0..outer).map(move |o| at(o, i))).collect()
            } else {
                (0..outer).flat_map(|o| (0..INNER).map(move |i| at(o, i))).collect()
            }
        };
        // A multiple of 16 bytes from the start of a larger allocation.
        let aligned = |values: Vec<bf16>| {
            let mut room = vec![bf16::ZERO; values.len() + 8];
            let skip = room.as_ptr().align_offset(16);
            room[skip..skip + values.len()].copy_from_slice(&values);
            (room, skip)
        };
        let (a, a_at) = aligned(matrix(ROWS, self.transposed[0], 0));
        let (b, b_at) = aligned(matrix(self.columns, self.transposed[1], 3));
        let mut out = vec![f32::NAN; ROWS * self.columns];
        let address = |values: &[bf16], at: usize| values[at..].as_ptr() as u64;
        let (a_at, b_at) = (address(&a, a_at), address(&b, b_at));
        let [first, second] = self.factors();
        let mut words = first.map(a_at).to_vec();
        words.extend(second.map(b_at));
        words.extend([out.as_mut_ptr() as u64, a_at]);
        let parameters: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let module = Module::parse(&self.kernel())?;
        let kernel = module.kernel("multiply").ok_or("no kernel")?;
        let launch = Launch {
            module: &module,
            kernel,
            grid: [1; 3],
            block: [128, 1, 1],
            cluster: [1; 3],
            shared: 100 << 10,
            parameters: &parameters,
        };
        let ranges = Ranges(vec![
            (a_at, 2 * ROWS * INNER),
            (b_at, 2 * self.columns * INNER),
            (out.as_ptr() as u64, 4 * out.len()),
        ]);
        run(&launch, &ranges)?;
        let sum = |i: usize, j: usize| (0..INNER).map(|k| value(i, k) * value(j + 3, k)).sum::<f32>();
        let expected = (0..ROWS * self.columns).map(|at| sum(at / self.columns, at % self.columns)).collect();
        Ok((out, expected))
    }
}

#[test]
fn a_loaded_box_multiplies_as_it_was_in_every_layout() {
    for swizzle in [0, 32, 64, 128] {
        for transposed in [[false, false], [false, true], [true, false], [true, true]] {
            for columns in [64, 128] {
                let (found, expected) =
                    Case { columns, swizzle, transposed, ..PLAIN }.run().expect("a product");
                assert_eq!(found, expected, "{swizzle} {transposed:?} {columns}");
            }
        }
    }
}

#[test]
fn a_factor_may_come_from_registers() {
    for transposed in [[false, false], [false, true]] {
        let case = Case { columns: 192, transposed, a_in_registers: true, ..PLAIN };
        let (found, expected) = case.run().expect("a product");
        assert_eq!(found, expected, "{transposed:?}");
    }
}

#[test]
fn what_is_not_waited_for_is_found() {
    let error = |omit| Case { omit, ..PLAIN }.run().map(|_| ()).unwrap_err();
    assert!(
        error(Omit::WaitForLoad).contains("asynchronous copy is filling"),
        "{}",
        error(Omit::WaitForLoad)
    );
    assert!(error(Omit::WaitForProduct).contains("did not wait"), "{}", error(Omit::WaitForProduct));
    assert!(error(Omit::Fence).contains("wgmma.fence"), "{}", error(Omit::Fence));
}
