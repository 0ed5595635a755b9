//! A steady stream: a numbered line every millisecond. What is read is checked for order and completeness, and the
//! longest time without data is kept.

use std::io::Read;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::load::Way;

/// Longer than a session waits for what carries it.
const PATIENCE: Duration = Duration::from_secs(45);

/// A stream that is being read.
pub(crate) struct Steady {
    tcp: TcpStream,
    seen: Arc<Seen>,
    reader: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    lines: AtomicU64,
    longest_us: AtomicU64,
    ending: AtomicBool,
    fault: Mutex<Option<String>>,
}

impl Steady {
    pub(crate) fn open(way: Way) -> anyhow::Result<Self> {
        let mut tcp = way.open()?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        tcp.write_all(b"S")?;
        let (from, seen) = (tcp.try_clone()?, Arc::new(Seen::default()));
        let told = seen.clone();
        let reader = std::thread::spawn(move || {
            let result = read(from, &told);
            if !told.ending.load(Relaxed)
                && let (Err(fault), Ok(mut place)) = (result, told.fault.lock())
            {
                *place = Some(fault);
            }
        });
        Ok(Self { tcp, seen, reader: Some(reader) })
    }

    /// Waits until `more` lines have come, and then forgets how long that took.
    pub(crate) fn settle(&self, more: u64) -> anyhow::Result<()> {
        self.more(more)?;
        self.seen.longest_us.store(0, Relaxed);
        Ok(())
    }

    /// Waits until so many lines have come that had not been here.
    pub(crate) fn more(&self, lines: u64) -> anyhow::Result<()> {
        let goal = self.lines() + lines;
        let deadline = Instant::now() + PATIENCE;
        while self.lines() < goal {
            self.check()?;
            if Instant::now() > deadline {
                bail!("the steady stream stands still at line {}", self.lines());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.check()
    }

    fn lines(&self) -> u64 {
        self.seen.lines.load(Relaxed)
    }

    /// The longest time without data since it was last settled.
    pub(crate) fn longest(&self) -> Duration {
        Duration::from_micros(self.seen.longest_us.load(Relaxed))
    }

    fn check(&self) -> anyhow::Result<()> {
        let fault = self.seen.fault.lock().ok().and_then(|mut f| f.take());
        fault.map_or(Ok(()), |fault| bail!("the steady stream: {fault}"))
    }

    /// Ends it; every line that came was the next one.
    pub(crate) fn end(mut self) -> anyhow::Result<()> {
        let result = self.check();
        self.close();
        result.context("at its end")
    }

    fn close(&mut self) {
        self.seen.ending.store(true, Relaxed);
        let _ = self.tcp.shutdown(Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        self.close();
    }
}

fn read(mut tcp: TcpStream, seen: &Seen) -> Result<(), String> {
    let (mut buffer, mut lines, mut last) = (vec![0; 65_536], Lines::default(), Instant::now());
    loop {
        match tcp.read(&mut buffer) {
            Ok(0) => return Err(format!("ended after line {}", lines.next)),
            Ok(n) => {
                let now = Instant::now();
                let gap = u64::try_from((now - last).as_micros()).unwrap_or(u64::MAX);
                last = now;
                lines.take(&buffer[..n])?;
                // The gap first: whoever waits for lines reads it after them.
                seen.longest_us.fetch_max(gap, Relaxed);
                seen.lines.store(lines.next, Relaxed);
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(format!("after line {}: {error}", lines.next)),
        }
    }
}

/// Numbered lines, in whatever pieces they come.
#[derive(Default)]
struct Lines {
    next: u64,
    part: Vec<u8>,
}

impl Lines {
    fn take(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            self.part.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let line = String::from_utf8_lossy(&self.part).into_owned();
            if line != self.next.to_string() {
                return Err(format!("line {:?} came where {} was next", line, self.next));
            }
            self.part.clear();
            self.next += 1;
        }
        self.part.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_in_pieces_are_put_together_and_a_missing_or_doubled_one_is_told() {
        let mut lines = Lines::default();
        for piece in ["0\n1", "\n2\n", "", "3\n4\n5\n6\n7\n8\n9\n1", "0\n"] {
            lines.take(piece.as_bytes()).expect("the next lines");
        }
        assert_eq!(lines.next, 11);
        assert!(lines.take(b"12\n").is_err());
        let mut lines = Lines::default();
        assert!(lines.take(b"0\n0\n").is_err());
    }
}
