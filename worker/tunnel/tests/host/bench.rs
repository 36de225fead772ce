//! Figures, beside a network in the clear between the same tasks. Not run by default:
//! `cargo test --release -p rswarm-tunnel --test host -- --ignored --nocapture bench`.

use std::process::Stdio;

use crate::{APP, OTHER, exchange, sample};

const ROUNDS: usize = 5;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::test]
#[ignore = "takes half a minute"]
async fn bench_throughput_of_an_encrypted_network() {
    needs_tunnel!();
    let cluster = sample().await;
    exchange(&cluster, OTHER, "ready");
    let (from, to) = (&cluster.tasks[0], &cluster.tasks[1]);
    let mut command = rswarm_net::lab::command_in_netns(&to.container.netns(), "iperf3").unwrap();
    let Ok(mut server) = command.arg("-s").stdout(Stdio::null()).spawn() else {
        eprintln!("skipped: needs iperf3");
        return;
    };
    let gigabits = |vni: u32| -> f64 {
        let report = from.container.output("iperf3", &["-c", &to.address(vni).to_string(), "-t", "2", "-J"]);
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap() / 1e9
    };
    crate::rig::wait_until("iperf3 listens", || {
        to.container.run(|| std::net::TcpStream::connect((to.address(APP), 5201)).is_ok())
    });
    let (mut clear, mut encrypted) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        clear.push(gigabits(APP));
        encrypted.push(gigabits(OTHER));
    }
    let _ = server.kill();
    let _ = server.wait();
    let (clear, encrypted) = (median(clear), median(encrypted));
    eprintln!("iperf3: {clear:.2} Gbit/s in the clear, {encrypted:.2} Gbit/s encrypted");
}
