//! Simulation of the core: control loops, dispatcher and fake workers in one thread over a virtual clock.
//!
//! A seeded generator makes users act, nodes crash, return and drain, sessions drop, reports come late, twice and out
//! of order, and leaders change. Safety is checked after every step; then everything is made well and the cluster
//! must settle with every place filled. `RSWARM_SIM_SEEDS=100000 RSWARM_SIM_FIRST=7` runs other and more seeds.

#![allow(clippy::unwrap_used)] // A broken simulation may stop at once.
#![allow(clippy::disallowed_methods)] // Seeds come from the environment.

mod checks;
mod rng;
mod worker;
mod world;

use world::World;

/// Steps with faults; then quiet.
const STEPS: u32 = 500;

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn run(seed: u64) -> Result<World, String> {
    let mut world = World::new(seed);
    for step in 0..STEPS {
        world.disturb();
        world.step().map_err(|error| format!("step {step}: {error}"))?;
    }
    world.settle().map_err(|error| format!("quiet: {error}"))?;
    Ok(world)
}

#[test]
fn faults_never_break_safety_and_quiet_brings_every_place_back() {
    let first = env("RSWARM_SIM_FIRST", 1);
    for seed in first..first + env("RSWARM_SIM_SEEDS", 25) {
        if let Err(error) = run(seed) {
            panic!(
                "seed {seed} failed: {error}\nreproduce: \
                 RSWARM_SIM_FIRST={seed} RSWARM_SIM_SEEDS=1 cargo test -p rswarm-core --test sim"
            );
        }
    }
}

#[test]
fn the_log_replayed_gives_an_equal_state() {
    let world = run(77).unwrap();
    let mut replayed = rswarm_core::State::default();
    for (index, command) in &world.log {
        let bytes = rmp_serde::to_vec_named(command).unwrap();
        replayed = rswarm_core::apply(&replayed, *index, &rmp_serde::from_slice(&bytes).unwrap()).0;
    }
    assert!(replayed == world.state, "a replayed log gives another state");
    let bytes = rmp_serde::to_vec_named(&world.state).unwrap();
    let restored: rswarm_core::State = rmp_serde::from_slice(&bytes).unwrap();
    assert!(restored == world.state, "a snapshot gives another state");
}

#[test]
fn one_seed_gives_one_trace() {
    let (a, b) = (run(5).unwrap(), run(5).unwrap());
    assert_eq!(a.log.len(), b.log.len());
    assert!(a.log == b.log && a.state == b.state);
}

#[test]
fn the_checks_see_a_task_on_two_nodes_and_a_state_that_goes_back() {
    // Proves that the net holds: what the checks compare is broken on purpose.
    let world = run(3).unwrap();
    let mut checks = checks::Checks::default();
    checks.after_step(&world.state).unwrap();
    let mut text = serde_json::to_value(&world.state).unwrap();
    let task = text["tasks"].as_array_mut().unwrap().iter_mut().find(|t| t["status"]["state"] == "running");
    task.unwrap()["status"]["state"] = "accepted".into();
    let broken: rswarm_core::State = serde_json::from_value(text).unwrap();
    assert!(checks.after_step(&broken).unwrap_err().contains("went back"));
}
