//! A training run that is killed again and again ends as one that never was.
//!
//! `landmark train` is started on a tiny model and killed with SIGKILL at a random moment, over and over. After each
//! kill every checkpoint on disk must be readable; when the run is through at last, its weights, its optimiser's
//! state and its metrics must be, bit for bit, those of a run that nobody touched. Dropout and jumping positions are on,
//! so that random numbers have to be resumed, too.
//!
//! It takes a while and wants a machine that is not too busy to get anywhere between two kills, so it is ignored by
//! default. `LANDMARK_KILLS=20 cargo test -p landmark-cli --test kill -- --ignored --nocapture` runs it; `scripts/test`
//! does so with fewer kills.
#![cfg(unix)]

use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use landmark_formats::safetensors::SafetensorsFile;

const ITERATIONS: u64 = 60;

/// Tokens of the data set lie below this; the rest of the vocabulary is for the landmark.
const ORDINARY: u64 = 500;

/// A data set of pseudo-random tokens with some structure.
fn write_data(folder: &Path) {
    fs::create_dir_all(folder).expect("a folder");
    for (name, count) in [("train.bin", 6000), ("validation.bin", 1500)] {
        let mut state = 1_u64;
        let mut bytes = Vec::new();
        for i in 0..count {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let id = if i % 3 == 0 { (state >> 33) % ORDINARY } else { i % 17 };
            bytes.extend((id as u16).to_le_bytes());
        }
        fs::write(folder.join(name), bytes).expect("a stream");
    }
}

fn start(data: &Path, results: &Path) -> Child {
    let flags = "train --model landmark --n_embd 32 --n_head 2 --n_layer 2 --batch_size 4 --acc_steps 2 \
                 --sequence_length 64 --vocab_size 512 --landmark_id 511 --mem_freq 15 --dropout 0.1 \
                 --group_dropout 0.1 --positional_encoder rotary_mem_jump --pos_jump_on_mem 4 --eval_freq 20 \
                 --eval_batches 2 --save_checkpoint_freq 3 --keep_last 2 --dataset text --exp_name run \
                 --device cpu --resume";
    Command::new(env!("CARGO_BIN_EXE_landmark"))
        .args(flags.split_whitespace())
        .args(["--iterations", &ITERATIONS.to_string()])
        .arg("--data_dir")
        .arg(data)
        .arg("--results_base_folder")
        .arg(results)
        .stdout(Stdio::null())
        .stderr(fs::File::create(results.with_extension("log")).expect("a log"))
        .spawn()
        .expect("landmark starts")
}

fn log(results: &Path) -> String {
    fs::read_to_string(results.with_extension("log")).unwrap_or_default()
}

/// The run's folder, once there is one.
fn folder(results: &Path) -> PathBuf {
    results.join("text/landmark/run")
}

/// Name, shape and bytes of everything in a checkpoint.
fn contents(path: &Path) -> Vec<(String, Vec<usize>, Vec<u8>)> {
    let file = SafetensorsFile::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let tensor = |name: &str| {
        let tensor = file.get(name).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let bytes = tensor.to_f32().iter().flat_map(|x| x.to_bits().to_le_bytes()).collect();
        (name.to_string(), tensor.shape().to_vec(), bytes)
    };
    let mut contents: Vec<_> = file.names().map(tensor).collect();
    contents.sort();
    contents
}

/// Reads every checkpoint of a run; gives their number.
fn check_readable(results: &Path, tensors: usize) -> usize {
    let Ok(entries) = fs::read_dir(folder(results)) else { return 0 };
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let named = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("ckpt") && name.ends_with(".safetensors")
    };
    let checkpoints: Vec<_> = paths.filter(named).collect();
    for path in &checkpoints {
        assert_eq!(contents(path).len(), tensors, "{}", path.display());
    }
    checkpoints.len()
}

/// A random number below 1. From the system: each run of the test kills at other moments.
fn random() -> f64 {
    RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64
}

#[test]
#[ignore = "takes a minute; scripts/test runs it"]
fn a_killed_run_ends_as_one_that_was_never_stopped() {
    let kills: usize = std::env::var("LANDMARK_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let home = tempfile::tempdir().expect("a folder");
    let data = home.path().join("data");
    write_data(&data);

    let whole = home.path().join("whole");
    let began = Instant::now();
    let status = start(&data, &whole).wait().expect("an end");
    let duration = began.elapsed();
    assert!(status.success(), "the untouched run: {}", log(&whole));
    let expected = contents(&folder(&whole).join("ckpt.safetensors"));
    let metrics =
        |results: &Path| fs::read_to_string(folder(results).join("metrics.jsonl")).expect("metrics");
    assert_eq!(metrics(&whole).lines().count() as u64, ITERATIONS);
    println!("an untouched run takes {duration:.2?} and leaves {} tensors", expected.len());

    let (mut killed, mut runs, mut seen) = (0, 0, 0);
    while killed < kills {
        // Each run is killed until it gets through; then another begins, until there were kills enough.
        let results = home.path().join(format!("killed-{runs}"));
        runs += 1;
        loop {
            let mut child = start(&data, &results);
            if killed < kills {
                let after = duration.mul_f64(random());
                let began = Instant::now();
                let mut ended = None;
                while ended.is_none() && began.elapsed() < after {
                    std::thread::sleep(Duration::from_millis(1));
                    ended = child.try_wait().expect("a status");
                }
                if ended.is_none() {
                    child.kill().expect("a kill"); // SIGKILL
                    killed += 1;
                }
            }
            let status = child.wait().expect("an end");
            let readable = check_readable(&results, expected.len());
            seen += readable;
            if status.success() {
                break;
            }
            assert!(status.code().is_none(), "a resumed run failed by itself: {}", log(&results));
            println!("kill {killed}: {readable} checkpoints readable");
        }
        let found = contents(&folder(&results).join("ckpt.safetensors"));
        for (found, expected) in found.iter().zip(&expected) {
            assert!(found == expected, "{} differs from that of the run that was never stopped", expected.0);
        }
        assert_eq!(found.len(), expected.len());
        assert_eq!(metrics(&results), metrics(&whole), "metrics");
        assert!(folder(&results).join("summary.json").is_file());
    }
    println!(
        "{killed} kills in {runs} runs; checkpoints were read {seen} times; all ended bit for bit alike"
    );
    assert!(seen > 0);
}
