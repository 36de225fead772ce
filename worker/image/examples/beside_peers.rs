//! Times unpacking beside `skopeo copy` and `umoci unpack`, and what a further container of an image costs.
//!
//! ```text
//! cargo run --release -p rswarm-image --example beside_peers [MEGABYTES [ROUNDS [LAYERS]]]
//! ```
//! Makes an image of five gzip layers (500 MB unpacked by default: a few large files, many small ones), then in each
//! round unpacks it with both, one after the other, into fresh directories. All of it stays until the end, as ext4 is slow
//! at making files where some were just deleted. Needs root, `skopeo`, `umoci`, and three times the image's size for
//! each round where `TMPDIR` points. Ours runs in a process of its own, whose peak memory counts.
#![allow(clippy::unwrap_used, reason = "a measurement that cannot be made says so by failing")]

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use rswarm_image::{ImageStore, LoadOptions};

const LAYERS: usize = 5;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, archive, root] = arguments.as_slice()
        && mode == "load"
    {
        return load(Path::new(archive), Path::new(root));
    }
    let number = |position: usize, default: usize| {
        arguments.get(position).map_or(default, |text: &String| text.parse().expect("a number"))
    };
    let (megabytes, rounds, layers) = (number(0, 500), number(1, 3), number(2, LAYERS));
    let place = tempfile::tempdir().unwrap();
    let layout = make_layout(place.path(), megabytes << 20, layers);
    let archive = place.path().join("image.tar");
    run(Command::new("tar").arg("-C").arg(&layout).arg("-cf").arg(&archive).arg("."));
    println!(
        "image: {layers} layers, {megabytes} MB unpacked, {} MB packed",
        fs::metadata(&archive).unwrap().len() >> 20
    );

    let (mut ours, mut theirs, mut memory, mut further) = (Vec::new(), Vec::new(), 0u64, Vec::new());
    for round in 0..rounds {
        let fresh = |name: &str| place.path().join(format!("{name}{round}"));
        let (copy, bundle, root) = (fresh("copy"), fresh("bundle"), fresh("store"));
        let start = Instant::now();
        run(Command::new("skopeo")
            .args(["copy", "--insecure-policy", "--quiet"])
            .arg(format!("oci:{}:1", layout.display()))
            .arg(format!("oci:{}:1", copy.display())));
        let copied = start.elapsed();
        run(Command::new("umoci")
            .arg("unpack")
            .arg("--image")
            .arg(format!("{}:1", copy.display()))
            .arg(&bundle));
        theirs.push(start.elapsed());
        // What they left for the kernel to write is not ours to wait for.
        run(&mut Command::new("sync"));

        let start = Instant::now();
        let said = run(Command::new(std::env::current_exe().unwrap()).arg("load").arg(&archive).arg(&root));
        ours.push(start.elapsed());
        let mut words = said.split_whitespace().map(|word| word.parse::<u64>().unwrap());
        memory = memory.max(words.next().unwrap());
        further.push(Duration::from_micros(words.next().unwrap()));
        run(&mut Command::new("sync"));
        println!(
            "round {}: skopeo copy + umoci unpack {:.2} s (copy {:.2}), rswarm load {:.2} s, durable",
            round + 1,
            theirs[round].as_secs_f64(),
            copied.as_secs_f64(),
            ours[round].as_secs_f64()
        );
    }
    println!("median: skopeo copy + umoci unpack  {:>8.2} s", median(&mut theirs).as_secs_f64());
    println!("median: rswarm load                 {:>8.2} s", median(&mut ours).as_secs_f64());
    println!("peak memory of rswarm               {:>8.1} MB", memory as f64 / 1024.0);
    println!("image work of a further container   {:>8.3} ms", median(&mut further).as_secs_f64() * 1e3);
}

/// Loads the archive; says the peak of resident memory in KiB, and what the image costs a further container, in µs.
fn load(archive: &Path, root: &Path) {
    let store = ImageStore::open(root).unwrap();
    store.load(File::open(archive).unwrap(), &LoadOptions::default()).unwrap();
    let start = Instant::now();
    let image = store.list().remove(0);
    let directories = store.rootfs(&image).unwrap();
    let further = start.elapsed();
    assert!(directories.iter().all(|directory| directory.is_dir()));
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    println!("{} {}", peak.trim().trim_end_matches(" kB"), further.as_micros());
}

/// An OCI layout with one image, made of trees by GNU tar, gzip and umoci: none of it is ours.
fn make_layout(place: &Path, bytes: usize, layers: usize) -> PathBuf {
    let layout = place.join("layout");
    run(Command::new("umoci").arg("init").arg("--layout").arg(&layout));
    let image = format!("{}:1", layout.display());
    run(Command::new("umoci").arg("new").arg("--image").arg(&image));
    for layer in 0..layers {
        let tree = place.join("tree");
        fill(&tree.join(format!("layer{layer}")), bytes / layers, layer as u64);
        let tar = place.join("layer.tar");
        run(Command::new("tar").arg("-C").arg(&tree).arg("-cf").arg(&tar).arg("."));
        run(Command::new("umoci").args(["raw", "add-layer", "--image"]).arg(&image).arg(&tar));
        fs::remove_dir_all(&tree).unwrap();
        fs::remove_file(&tar).unwrap();
    }
    layout
}

/// Half of `bytes` in large files, half in files of 16 KB, each compressible to about a third as programs are.
fn fill(directory: &Path, bytes: usize, seed: u64) {
    let mut state = seed * 77 + 1;
    let mut content = |length: usize| -> Vec<u8> {
        let mut data = Vec::with_capacity(length + 64);
        while data.len() < length {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            data.extend_from_slice(&state.to_le_bytes());
            data.extend_from_slice(b"some text that repeats");
            if state.is_multiple_of(3) {
                data.extend_from_slice(&[0; 24]);
            }
        }
        data.truncate(length);
        data
    };
    for (length, name) in [(8 << 20, "large"), (16 << 10, "small")] {
        for number in 0..(bytes / 2).div_ceil(length) {
            let home = directory.join(format!("{name}{}", number % 50));
            fs::create_dir_all(&home).unwrap();
            let mut file = BufWriter::new(File::create(home.join(format!("{number}"))).unwrap());
            file.write_all(&content(length)).unwrap();
            file.flush().unwrap();
        }
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}
