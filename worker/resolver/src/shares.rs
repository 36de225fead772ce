//! Places that clients share: so many in all, and of each client fewer, so that one leaves room for the others.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;

#[derive(Debug)]
pub struct Shares {
    max: usize,
    max_each: usize,
    taken: RefCell<HashMap<IpAddr, usize>>,
}

/// A place; free again when dropped.
#[derive(Debug)]
pub struct Share {
    of: Rc<Shares>,
    client: IpAddr,
}

impl Shares {
    pub fn new(max: usize, max_each: usize) -> Rc<Self> {
        Rc::new(Self { max, max_each, taken: RefCell::default() })
    }

    /// Takes a place; `None` if the client has its share, or all are taken.
    pub fn take(self: &Rc<Self>, client: IpAddr) -> Option<Share> {
        let mut taken = self.taken.borrow_mut();
        let own = taken.get(&client).copied().unwrap_or_default();
        if own >= self.max_each || taken.values().sum::<usize>() >= self.max {
            return None;
        }
        taken.insert(client, own + 1);
        Some(Share { of: self.clone(), client })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.of.taken.borrow_mut();
        if let Some(own) = taken.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_gets_more_than_a_share_and_all_together_no_more_than_there_is() {
        let shares = Shares::new(5, 2);
        let client = |last| IpAddr::from([10, 0, 0, last]);
        let mut held: Vec<_> =
            [1, 1, 2, 2, 3].into_iter().map(|last| shares.take(client(last)).unwrap()).collect();
        assert!(shares.take(client(1)).is_none() && shares.take(client(4)).is_none());
        held.pop();
        assert!(shares.take(client(1)).is_none(), "its share is taken still");
        held.push(shares.take(client(4)).unwrap());
        held.clear();
        assert!(shares.taken.borrow().is_empty(), "nothing is kept of clients that went");
    }
}
