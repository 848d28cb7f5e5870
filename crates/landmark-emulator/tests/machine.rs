//! Small texts of PTX with results worked out by hand, and planted mistakes that must be found.

use landmark_emulator::{Launch, Memory, Module, run};

/// Allows one range.
struct Range(u64, usize);

impl Memory for Range {
    fn check(&self, address: u64, bytes: usize, _write: bool) -> Result<(), String> {
        let inside = address >= self.0 && address + bytes as u64 <= self.0 + self.1 as u64;
        if inside { Ok(()) } else { Err(format!("{bytes} bytes at {address:#x} are nobody's")) }
    }
}

const REGISTERS: &str = ".reg .b32 %r<40>; .reg .b64 %rd<20>; .reg .pred %p<10>; .reg .b16 %h<10>;
    .shared .align 16 .b8 tile[1024];
    ld.param.u64 %rd0, [k_param_0]; mov.u32 %r0, %tid.x; mul.wide.u32 %rd1, %r0, 4; add.s64 %rd1, %rd0, %rd1;
    mov.u32 %r31, tile; shl.b32 %r32, %r0, 2; add.u32 %r33, %r31, %r32;";

/// Runs `body` for so many threads; `%r0` is the thread, `%rd1` the address of its word, `%r33` that of its word of
/// `tile`. What it leaves in the words, which begin as `words`.
fn execute(threads: u32, body: &str, words: &mut [u32]) -> Result<(), String> {
    let text = format!(
        ".version 8.8\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 k_param_0)\n{{\n{REGISTERS}\n{body}\nret;\n}}\n"
    );
    let module = Module::parse(&text)?;
    let memory = Range(words.as_ptr() as u64, words.len() * 4);
    let launch = Launch {
        module: &module,
        kernel: module.kernel("k").ok_or("no kernel")?,
        grid: [1; 3],
        block: [threads, 1, 1],
        cluster: [1; 3],
        shared: 0,
        parameters: &(words.as_mut_ptr() as u64).to_le_bytes(),
    };
    run(&launch, &memory)
}

/// One thread's result: `%r10` after `body`, with `%r1`, `%r2`, `%r3` given.
fn value(body: &str, [a, b, c]: [u32; 3]) -> u32 {
    let mut words = [0; 32];
    let given = format!("mov.b32 %r1, {a}; mov.b32 %r2, {b}; mov.b32 %r3, {c};");
    execute(32, &format!("{given} {body}\nst.global.u32 [%rd1], %r10;"), &mut words).unwrap();
    words[0]
}

#[test]
fn integers() {
    let minus = |x: i32| x as u32;
    let cases = [
        ("add.s32 %r10, %r1, %r2;", [7, minus(-9), 0], minus(-2)),
        ("mul.hi.s32 %r10, %r1, %r2;", [minus(-2), 1 << 30, 0], minus(-1)),
        ("mul.hi.u32 %r10, %r1, %r2;", [minus(-2), 1 << 30, 0], 0x3fff_ffff),
        ("div.s32 %r10, %r1, %r2;", [minus(-7), 2, 0], minus(-3)),
        ("rem.s32 %r10, %r1, %r2;", [minus(-7), 2, 0], minus(-1)),
        ("shr.s32 %r10, %r1, %r2;", [minus(-8), 40, 0], minus(-1)),
        ("shl.b32 %r10, %r1, %r2;", [1, 32, 0], 0),
        ("shf.l.wrap.b32 %r10, %r1, %r2, %r3;", [0x8000_0000, 1, 33], 3),
        ("shf.r.clamp.b32 %r10, %r1, %r2, %r3;", [5, 9, 40], 9),
        ("bfe.s32 %r10, %r1, %r2, %r3;", [0xf0, 4, 4], minus(-1)),
        ("bfe.u32 %r10, %r1, %r2, %r3;", [0xabcd, 8, 8], 0xab),
        ("bfi.b32 %r10, %r1, %r2, 8, 8;", [0x12, 0xffff_ffff, 0], 0xffff_12ff),
        ("prmt.b32 %r10, %r1, %r2, 0x7510;", [0x4433_2211, 0x8877_6655, 0], 0x8866_2211),
        ("prmt.b32 %r10, %r1, %r2, 0xf;", [0, 0x8000_0000, 0], 0x0000_00ff),
        ("lop3.b32 %r10, %r1, %r2, %r3, 0xca;", [0b1100, 0b1010, 0b0101], 0b1001),
        ("bfind.u32 %r10, %r1;", [0x10, 0, 0], 4),
        ("bfind.s32 %r10, %r1;", [minus(-1), 0, 0], u32::MAX),
        ("clz.b32 %r10, %r1;", [0, 0, 0], 32),
        ("popc.b32 %r10, %r1;", [0xf00f, 0, 0], 8),
        ("sad.u32 %r10, %r1, %r2, %r3;", [3, 10, 100], 107),
        ("mad.lo.s32 %r10, %r1, %r2, %r3;", [minus(-3), 5, 1], minus(-14)),
        ("min.s32 %r10, %r1, %r2;", [minus(-3), 5, 0], minus(-3)),
        ("mov.b16 %h1, -2; mov.b16 %h2, 3; mul.wide.s16 %r10, %h1, %h2;", [0, 0, 0], minus(-6)),
        ("dp4a.u32.u32 %r10, %r1, %r2, %r3;", [0x0102_0304, 0x0101_0101, 5], 15),
        ("add.cc.u32 %r10, %r1, %r2; addc.u32 %r10, 0, 0;", [u32::MAX, 1, 0], 1),
        ("cvt.u16.u32 %h1, %r1; cvt.s32.s16 %r10, %h1;", [0x1_8000, 0, 0], minus(-32768)),
        ("cvt.sat.u8.s32 %r10, %r1;", [300, 0, 0], 255),
        ("mov.b32 {%h1, %h2}, %r1; mov.b32 %r10, {%h2, %h1};", [0x1234_5678, 0, 0], 0x5678_1234),
        ("mul.wide.u32 %rd2, %r1, %r2; shr.u64 %rd2, %rd2, 32; cvt.u32.u64 %r10, %rd2;", [1 << 31, 6, 0], 3),
        ("setp.lt.s32 %p1, %r1, %r2; selp.b32 %r10, 1, 2, %p1;", [minus(-1), 0, 0], 1),
        ("setp.lt.u32 %p1|%p2, %r1, %r2; selp.b32 %r10, 1, 2, %p2;", [minus(-1), 0, 0], 1),
        ("@!%p9 mov.b32 %r10, 4; setp.eq.s32 %p1, %r1, 0; @%p1 mov.b32 %r10, 5;", [1, 0, 0], 4),
    ];
    for (text, given, expected) in cases {
        assert_eq!(value(text, given), expected, "{text} of {given:x?}");
    }
}

#[test]
fn floats() {
    let f = f32::to_bits;
    let next = |x: f32| x.next_up().to_bits();
    let tiny = f32::EPSILON / 4.0;
    let cases = [
        (
            "fma.rn.f32 %r10, %r1, %r2, %r3;",
            [f(1.0 + f32::EPSILON), f(1.0 - f32::EPSILON), f(-1.0)],
            f(-(f32::EPSILON * f32::EPSILON)),
        ),
        ("add.rn.f32 %r10, %r1, %r2;", [f(1.0), f(tiny), 0], f(1.0)),
        ("add.rp.f32 %r10, %r1, %r2;", [f(1.0), f(tiny), 0], next(1.0)),
        ("add.rz.f32 %r10, %r1, %r2;", [f(-1.0), f(-tiny), 0], f(-1.0)),
        ("add.rm.f32 %r10, %r1, %r2;", [f(-1.0), f(-tiny), 0], f((-1.0f32).next_down())),
        ("div.rp.f32 %r10, %r1, %r2;", [f(1.0), f(3.0), 0], f(1.0 / 3.0)),
        ("div.rz.f32 %r10, %r1, %r2;", [f(1.0), f(3.0), 0], f((1.0f32 / 3.0).next_down())),
        ("max.f32 %r10, %r1, %r2;", [f32::NAN.to_bits(), f(2.0), 0], f(2.0)),
        ("max.NaN.f32 %r10, %r1, %r2;", [f32::NAN.to_bits(), f(2.0), 0], 0x7fff_ffff),
        ("min.f32 %r10, %r1, %r2;", [f(0.0), f(-0.0), 0], f(-0.0)),
        ("add.ftz.f32 %r10, %r1, %r2;", [1, 0, 0], 0),
        ("add.sat.f32 %r10, %r1, %r2;", [f(2.0), f(3.0), 0], f(1.0)),
        ("ex2.approx.ftz.f32 %r10, %r1;", [f(-3.0), 0, 0], f(0.125)),
        ("rcp.approx.ftz.f32 %r10, %r1;", [f(4.0), 0, 0], f(0.25)),
        ("lg2.approx.f32 %r10, %r1;", [f(32.0), 0, 0], f(5.0)),
        ("cvt.rni.s32.f32 %r10, %r1;", [f(2.5), 0, 0], 2),
        ("cvt.rmi.f32.f32 %r10, %r1;", [f(-0.5), 0, 0], f(-1.0)),
        ("cvt.rzi.s32.f32 %r10, %r1;", [f(-1e20), 0, 0], i32::MIN as u32),
        ("cvt.rzi.u32.f32 %r10, %r1;", [f32::NAN.to_bits(), 0, 0], 0),
        ("cvt.rn.f32.u32 %r10, %r1;", [u32::MAX, 0, 0], f(4_294_967_296.0)),
        ("cvt.rz.f32.u32 %r10, %r1;", [u32::MAX, 0, 0], f(4_294_967_040.0)),
        // 1 + 2^-8 is a tie of bf16, and goes to the even one
        ("cvt.rn.bf16x2.f32 %r10, %r1, %r2;", [0x3f80_8000, 0x3f81_8000, 0], 0x3f80_3f82),
        ("cvt.rz.bf16x2.f32 %r10, %r1, %r2;", [0x3f80_ffff, 0xbf81_8000, 0], 0x3f80_bf81),
        ("cvt.rn.f16x2.f32 %r10, %r1, %r2;", [f(1.0), f(65520.0), 0], 0x3c00_7c00),
        ("fma.rn.bf16x2 %r10, %r1, %r2, %r3;", [0x3f80_4000, 0x4000_4000, 0x3f80_3f80], 0x4040_40a0),
        ("setp.ltu.f32 %p1, %r1, %r2; selp.b32 %r10, 1, 0, %p1;", [f32::NAN.to_bits(), f(2.0), 0], 1),
        ("setp.ne.f32 %p1, %r1, %r2; selp.b32 %r10, 1, 0, %p1;", [f32::NAN.to_bits(), f(2.0), 0], 0),
        ("testp.subnormal.f32 %p1, %r1; selp.b32 %r10, 1, 0, %p1;", [1, 0, 0], 1),
        ("copysign.f32 %r10, %r1, %r2;", [f(-1.0), f(3.0), 0], f(-3.0)),
    ];
    for (text, given, expected) in cases {
        let got = value(text, given);
        assert_eq!(got, expected, "{text} of {given:x?}: {got:#x} and not {expected:#x}");
    }
}

#[test]
fn lanes_that_part_meet_again() {
    // thread t counts 0 + 1 + .. + (t - 1), then takes its right neighbour's count
    let body = "mov.b32 %r1, 0; mov.b32 %r2, 0;
        again: setp.ge.u32 %p1, %r1, %r0; @%p1 bra done;
        add.u32 %r2, %r2, %r1; add.u32 %r1, %r1, 1; bra again;
        done: shfl.sync.down.b32 %r3|%p2, %r2, 1, 31, 0xffffffff;
        @!%p2 mov.b32 %r3, 1000;
        st.global.u32 [%rd1], %r3;";
    let mut words = [0; 64];
    execute(64, body, &mut words).unwrap();
    for t in 0..64 {
        assert_eq!(words[t as usize], if t % 32 == 31 { 1000 } else { (t + 1) * t / 2 }, "thread {t}");
    }
}

#[test]
fn warps_vote_match_and_reduce() {
    let body = "setp.gt.u32 %p1, %r0, 28; vote.sync.ballot.b32 %r1, %p1, 0xffffffff;
        redux.sync.add.u32 %r2, %r0, 0xffffffff;
        and.b32 %r4, %r0, 7; match.any.sync.b32 %r5, %r4, 0xffffffff;
        add.u32 %r6, %r1, %r2; xor.b32 %r6, %r6, %r5; st.global.u32 [%rd1], %r6;";
    let mut words = [0; 32];
    execute(32, body, &mut words).unwrap();
    for t in 0..32 {
        assert_eq!(words[t], (0xe000_0000 + 496) ^ (0x0101_0101 << (t % 8)));
    }
}

#[test]
fn a_barrier_counts_and_orders() {
    let body = "st.shared.u32 [%r33], %r0; setp.lt.u32 %p1, %r0, 40; bar.red.popc.u32 %r1, 0, %p1;
        mov.u32 %r2, 63; sub.u32 %r2, %r2, %r0; shl.b32 %r2, %r2, 2; add.u32 %r2, %r31, %r2;
        ld.shared.u32 %r3, [%r2]; mad.lo.u32 %r3, %r1, 100, %r3; st.global.u32 [%rd1], %r3;";
    let mut words = [0; 64];
    execute(64, body, &mut words).unwrap();
    assert!((0..64).all(|t| words[t] == 4000 + 63 - t as u32), "{words:?}");
}

#[test]
fn atomic_operations_count() {
    let mut words = [5; 64];
    execute(
        64,
        "atom.global.add.u32 %r1, [%rd0], 1; setp.eq.u32 %p1, %r1, 68; @%p1 st.global.u32 [%rd0+4], %r0;",
        &mut words,
    )
    .unwrap();
    assert_eq!(words[..2], [69, 63]);
}

#[test]
fn copies_arrive_when_waited_for() {
    let copy = "and.b32 %r1, %r0, 3; shl.b32 %r2, %r0, 4; add.u32 %r3, %r31, %r2; mul.wide.u32 %rd2, %r0, 16;
        add.s64 %rd2, %rd0, %rd2; setp.lt.u32 %p1, %r0, 3; selp.u32 %r4, 16, 4, %p1;
        setp.lt.u32 %p3, %r0, 4; @%p3 cp.async.cg.shared.global [%r3], [%rd2], 16, %r4; cp.async.commit_group;";
    let read = "bar.sync 0; setp.lt.u32 %p4, %r0, 16; @!%p4 bra end; ld.shared.u32 %r5, [%r33]; st.global.u32 [%rd1], %r5; end:";
    let mut words: Vec<u32> = (100..132).collect();
    execute(32, &format!("{copy} cp.async.wait_group 0; {read}"), &mut words).unwrap();
    let expected: Vec<u32> = (100..113).chain([0; 3]).chain(116..132).collect();
    assert_eq!(words, expected);
    let message = execute(32, &format!("{copy} {read}"), &mut words).unwrap_err();
    assert!(message.contains("while an asynchronous copy is filling it"), "{message}");
    // the last group may be late, and is read too early
    let late = format!("{copy} cp.async.wait_group 1; {read}");
    assert!(execute(32, &late, &mut words).unwrap_err().contains("filling it"));
}

/// Every mistake, what finds it, and a thread or so of the place.
#[test]
fn mistakes_are_found() {
    let barrier = "st.shared.u32 [%r33], %r0; {B} xor.b32 %r1, %r33, 128; ld.shared.u32 %r2, [%r1]; st.global.u32 [%rd1], %r2;";
    let turn = "st.shared.u32 [%r33], %r0; bar.sync 0; xor.b32 %r1, %r33, 128; ld.shared.u32 %r2, [%r1]; {B}
        add.u32 %r3, %r2, 1; st.shared.u32 [%r33], %r3; bar.sync 0;";
    let mut words = [0; 64];
    for text in [barrier, turn] {
        execute(64, &text.replace("{B}", "bar.sync 0;"), &mut words).unwrap();
    }
    let (barrier, turn) = (barrier.replace("{B}", ""), turn.replace("{B}", ""));
    let cases: [(&str, &[&str]); 14] = [
        (
            "st.global.u32 [%rd1+4], %r0;",
            &["thread [63, 0, 0]", "are nobody's", "st.global.u32 [%rd1+4], %r0"],
        ),
        ("ld.global.u32 %r1, [%rd1+-4];", &["thread [0, 0, 0]", "are nobody's"]),
        ("st.global.v2.u32 [%rd1], {%r0, %r0};", &["thread [1, 0, 0]", "not a multiple of 8"]),
        ("ld.shared.u32 %r1, [%r33];", &["thread [0, 0, 0]", "never written"]),
        ("st.shared.u32 [%r33+900], %r0;", &["thread [31, 0, 0]", "shared memory is addressed"]),
        (&barrier, &["never written"]),
        (&turn, &["reads", "warp 1 wrote, and no barrier is between them"]),
        ("setp.lt.u32 %p1, %r0, 32; @%p1 bar.sync 1, 64;", &["no thread can go on", "waits at barrier 1"]),
        (
            "setp.lt.u32 %p1, %r0, 16; @%p1 bra skip; bar.sync 1; bra end; skip: bar.sync 2; end:",
            &["no thread can go on", "waits for lanes 0x0000ffff"],
        ),
        (
            "setp.lt.u32 %p1, %r0, 16; @!%p1 ret; shfl.sync.bfly.b32 %r1, %r0, 1, 31, 0xffffffff;",
            &["lanes that have ended"],
        ),
        (
            "setp.lt.u32 %p1, %r0, 16; @%p1 shfl.sync.down.b32 %r1, %r0, 8, 31, 0xffff;",
            &["does not take part"],
        ),
        ("setp.eq.u32 %p1, %r0, 37; @%p1 trap;", &["warp 1", "trap"]),
        ("mov.u64 %rd3, 0; ld.global.u32 %r1, [%rd3];", &["are nobody's"]),
        ("vmax4.u32.u32.u32 %r1, %r0, %r0, %r0;", &["vmax4", "does not know"]),
    ];
    for (text, parts) in cases {
        let message = execute(64, text, &mut words).expect_err(text);
        for part in parts {
            assert!(message.contains(part), "{text}: {message}");
        }
        assert!(message.starts_with("kernel k"), "{message}");
    }
}

#[test]
fn a_barrier_of_some_warps_orders_them_alone() {
    // warps 0 and 1 exchange through barrier 1; warp 2 only arrives for barrier 2, and 0 and 1 wait there
    let body = "setp.lt.u32 %p1, %r0, 64; @!%p1 bra third;
        st.shared.u32 [%r33], %r0; bar.sync 1, 64; xor.b32 %r1, %r33, 128; ld.shared.u32 %r2, [%r1];
        bar.sync 2, 96; ld.shared.u32 %r3, [%r31+256]; add.u32 %r2, %r2, %r3; st.global.u32 [%rd1], %r2; bra end;
        third: st.shared.u32 [%r31+256], 1000; bar.arrive 2, 96; st.global.u32 [%rd1], 7;
        end:";
    let mut words = [0; 96];
    execute(96, body, &mut words).unwrap();
    assert!((0..64u32).all(|t| words[t as usize] == 1000 + (t ^ 32)), "{words:?}");
    let wrong = body.replace("bar.arrive 2, 96;", "bar.arrive 3, 96;");
    assert!(execute(96, &wrong, &mut words).unwrap_err().contains("no thread can go on"));
}

#[test]
fn a_product_of_a_warp() {
    // A = the row's number in every element, B = the column's: D = 16 row column; 1, 2, .. are whole numbers of bf16
    let body = "shr.u32 %r1, %r0, 2; add.u32 %r2, %r1, 8; cvt.rn.f32.u32 %r3, %r1; cvt.rn.f32.u32 %r4, %r2;
        cvt.rn.bf16x2.f32 %r5, %r3, %r3; cvt.rn.bf16x2.f32 %r6, %r4, %r4; mov.b32 %r7, 0f00000000;
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%r10, %r11, %r12, %r13}, {%r5, %r6, %r5, %r6}, {%r5, %r5},
            {%r7, %r7, %r7, %r7};
        cvt.rzi.u32.f32 %r10, %r10; cvt.rzi.u32.f32 %r13, %r13; mad.lo.u32 %r10, %r13, 10000, %r10; st.global.u32 [%rd1], %r10;";
    let mut words = [0; 32];
    execute(32, body, &mut words).unwrap();
    for lane in 0..32u32 {
        let (row, column) = (lane / 4, 2 * (lane % 4));
        let low = 16 * row * column;
        let high = 16 * (row + 8) * (column + 1);
        assert_eq!(words[lane as usize], high * 10000 + low, "lane {lane}");
    }
}

#[test]
fn text_that_is_no_kernel_is_refused() {
    for text in
        [".visible .entry k(", "{", ".visible .entry k() { add.s32 %r1, %r2", ".global .align 3 .b8 x[4];"]
    {
        assert!(Module::parse(text).is_err(), "{text}");
    }
    let unknown = Module::parse(".visible .entry k() { bra nowhere; }");
    assert!(unknown.unwrap_err().contains("nowhere"));
}
