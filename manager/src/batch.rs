//! Keeps commands below what one log entry may hold.

use rswarm_core::state::Write;

/// Weight at which a command is full: half of what the log takes, since weights are estimates.
pub(crate) const WEIGHT_MAX: usize = 1 << 20;
/// What any write costs, in bytes, names of fields included.
const WRITE: usize = 400;
/// What a network of a task costs.
const NETWORK: usize = 200;

/// About how many bytes the writes take in the log.
pub(crate) fn weight(writes: &[Write]) -> usize {
    writes.iter().map(weight_of).sum()
}

/// Cuts writes, in their order, into commands that fit.
pub(crate) fn split(writes: Vec<Write>) -> Vec<Vec<Write>> {
    let mut commands = Vec::new();
    let mut command = Vec::new();
    let mut full = 0;
    for write in writes {
        let next = weight_of(&write);
        if full + next > WEIGHT_MAX && !command.is_empty() {
            commands.push(std::mem::take(&mut command));
            full = 0;
        }
        full += next;
        command.push(write);
    }
    if !command.is_empty() {
        commands.push(command);
    }
    commands
}

fn weight_of(write: &Write) -> usize {
    WRITE
        + match write {
            Write::SetTaskStatus { status, .. } => {
                status.message.len() + status.error.len() + status.ports.len() * 50
            }
            Write::CreateTask(task) => task.networks.len() * NETWORK + task.status.error.len(),
            Write::AllocateTask { networks, .. } => networks.len() * NETWORK,
            Write::SetNodeDescription { description, .. } => {
                description.engine_labels.iter().map(|(k, v)| k.len() + v.len() + 10).sum()
            }
            _ => 0,
        }
}

#[cfg(test)]
mod tests {
    use rswarm_types::TaskId;

    use super::*;

    #[test]
    fn large_sets_are_cut_in_order_and_lose_nothing() {
        let writes: Vec<Write> =
            (0..10_000u128).map(|n| Write::RemoveTask { id: TaskId::from_bytes(n.to_be_bytes()) }).collect();
        let commands = split(writes.clone());
        assert!(commands.len() > 1);
        assert!(commands.iter().all(|command| weight(command) <= WEIGHT_MAX && !command.is_empty()));
        assert_eq!(commands.concat(), writes);
        assert!(split(Vec::new()).is_empty());
    }
}
