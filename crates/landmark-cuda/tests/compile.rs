//! Every kernel variant compiles for sm_80 and sm_90a, without a GPU, and none spills registers.
//!
//! Needs NVRTC: through `LANDMARK_NVRTC`, or where the loader finds it. Without it the test passes and says so, unless
//! `LANDMARK_REQUIRE_NVRTC=1`, as in `scripts/test`.

use landmark_cuda::compile::{Arch, Variant, compiler, report};
use landmark_cuda::variants;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn every_variant_compiles_and_none_spills() {
    match compiler() {
        Ok(found) => println!("{found}"),
        Err(error) => {
            assert!(std::env::var_os("LANDMARK_REQUIRE_NVRTC").is_none(), "{error}");
            println!("not run: {error}");
            return;
        }
    }
    let only = std::env::var("LANDMARK_KERNEL").unwrap_or_default();
    let all: BTreeSet<Variant> = variants().into_iter().filter(|v| v.file.contains(&only)).collect();
    let jobs: Vec<(&Variant, Arch)> = all
        .iter()
        .flat_map(|v| [80, 90].map(|sm| (v, Arch(sm))))
        .filter(|(v, arch)| arch.is_hopper() || !v.hopper)
        .collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut wrong = Vec::new();
        while let Some((variant, arch)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            match report(variant, *arch) {
                Err(error) => wrong.push(format!("{variant} for sm_{}: {error}", arch.0)),
                Ok(functions) => {
                    if functions.is_empty() {
                        wrong.push(format!("{variant} for sm_{}: no function was reported", arch.0));
                    }
                    for f in functions {
                        let line = format!(
                            "{variant} for sm_{}, `{}`: {} registers, {} bytes spilled, {} bytes of stack",
                            arch.0, f.function, f.registers, f.spilled, f.stack
                        );
                        if f.spilled > 0 {
                            wrong.push(line.clone());
                        }
                        println!("{line}");
                    }
                }
            }
        }
        wrong
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|w| w.join().expect("a worker")).collect()
    });
    println!("{} variants, {} compilations", all.len(), jobs.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
