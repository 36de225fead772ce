//! Reading ahead: one thread decompresses and hashes a layer while another writes its files.

use std::{
    io::{self, Read},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

/// Bytes handed over at a time.
const CHUNK: usize = 128 * 1024;
/// Chunks that may wait; with those in use on both sides this is all the memory it takes.
const WAITING: usize = 4;

/// What was read by the other thread, in order.
pub(crate) struct Ahead {
    chunks: Receiver<io::Result<Vec<u8>>>,
    emptied: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    used: usize,
}

/// Gives `work` what a thread of its own reads from `source`, then both results. The thread ends with `work`, which may
/// have left some of it.
pub(crate) fn read_ahead<R: Read + Send, T>(mut source: R, work: impl FnOnce(Ahead) -> T) -> (T, R) {
    let (send, chunks) = sync_channel(WAITING);
    // Room for every chunk there is, so that giving one back never waits.
    let (emptied, take) = sync_channel(WAITING + 2);
    thread::scope(|scope| {
        let reading = scope.spawn(move || {
            feed(&mut source, &send, &take);
            drop(send);
            source
        });
        let done = work(Ahead { chunks, emptied, current: Vec::new(), used: 0 });
        (done, reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn feed(source: &mut impl Read, send: &SyncSender<io::Result<Vec<u8>>>, take: &Receiver<Vec<u8>>) {
    loop {
        let mut chunk = take.try_recv().unwrap_or_default();
        chunk.clear();
        let read = source.take(CHUNK as u64).read_to_end(&mut chunk);
        let is_last = !matches!(read, Ok(count) if count > 0);
        // What came before an error is read before it.
        if !chunk.is_empty() && send.send(Ok(chunk)).is_err() {
            return;
        }
        if let Err(error) = read {
            let _ = send.send(Err(error));
        }
        if is_last {
            return;
        }
    }
}

impl Read for Ahead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.used == self.current.len() {
            match self.chunks.recv() {
                // The other side has come to the end.
                Err(_) => return Ok(0),
                Ok(next) => {
                    let empty = std::mem::replace(&mut self.current, next?);
                    self.used = 0;
                    if empty.capacity() > 0 {
                        let _ = self.emptied.try_send(empty);
                    }
                }
            }
        }
        let count = buffer.len().min(self.current.len() - self.used);
        buffer[..count].copy_from_slice(&self.current[self.used..self.used + count]);
        self.used += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_comes_in_order_and_errors_come_last() {
        struct Broken(usize);
        impl Read for Broken {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let count = buffer.len().min(self.0).min(1000);
                if count == 0 {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                buffer[..count].fill(7);
                self.0 -= count;
                Ok(count)
            }
        }
        let bytes: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
        let (copy, rest) = read_ahead(bytes.as_slice(), |mut ahead| {
            let mut copy = Vec::new();
            ahead.read_to_end(&mut copy).unwrap();
            copy
        });
        assert!(copy == bytes && rest.is_empty());
        let (outcome, _) = read_ahead(Broken(500_000), |mut ahead| {
            let mut copy = Vec::new();
            let error = ahead.read_to_end(&mut copy).unwrap_err();
            (copy.len(), error.kind())
        });
        assert_eq!(outcome, (500_000, io::ErrorKind::ConnectionReset));
    }

    #[test]
    fn who_stops_early_waits_for_nobody() {
        let (read, _endless) = read_ahead(io::repeat(1), |mut ahead| {
            let mut buffer = [0; 3];
            ahead.read_exact(&mut buffer).map(|()| buffer)
        });
        assert_eq!(read.unwrap(), [1; 3]);
    }
}
