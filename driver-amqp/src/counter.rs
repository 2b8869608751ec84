//! The counter behind stable names, shared with oslo.messaging.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use messaging_core::{Error, Result};
use rustix::fs::{FlockOperation, OFlags, fcntl_lock};

/// How long another process may hold the counter.
const LOCK_LIMIT: Duration = Duration::from_secs(5);

/// The counter that the processes of one service on one host share.
///
/// Its file and its meaning are those of oslo.messaging's queue manager: it starts again when the process group or
/// the start time of its leader is another one, which is when the service was restarted.
#[derive(Debug, Clone)]
pub(crate) struct Counter {
    pub(crate) host: String,
    pub(crate) process: String,
    pub(crate) folder: PathBuf,
    /// Where Python keeps its locks, if it was said.
    pub(crate) locks: Option<PathBuf>,
}

impl Counter {
    /// The next name, `host:process:count`.
    pub(crate) fn next(&self) -> Result<String> {
        let path = self
            .folder
            .join(format!("{}_{}_qmanager", self.host, self.process));
        let count = self.count(&path).map_err(|error| {
            Error::config(format!(
                "use_queue_manager=true needs the counter {}: {error}",
                path.display()
            ))
        })?;
        Ok(format!("{}:{}:{count}", self.host, self.process))
    }

    fn count(&self, path: &Path) -> io::Result<u64> {
        // A record lock belongs to the process: it keeps no thread of the same process away.
        static THREADS: Mutex<()> = Mutex::new(());
        let _alone = THREADS.lock().unwrap_or_else(PoisonError::into_inner);
        let until = Instant::now() + LOCK_LIMIT;
        let _python = match &self.locks {
            Some(folder) => {
                std::fs::create_dir_all(folder)?;
                let name = format!("oslo_read_shm_{}_{}", self.host, self.process);
                let file = open(&folder.join(name))?;
                lock(&file, until)?;
                Some(file)
            }
            None => None,
        };
        let mut file = open(path)?;
        lock(&file, until)?;
        let (group, start) = generation()?;
        let mut text = String::new();
        // What is not text counts as nothing, and is written over.
        let _ = (&mut file).take(256).read_to_string(&mut text);
        let last = parse(&text)
            .filter(|last| last.0 == group && start.is_none_or(|start| start == last.2));
        let count = last.map_or(1, |last| last.1.saturating_add(1));
        let start = start.or(last.map(|last| last.2)).unwrap_or(0);
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(format!("{group}:{count}:{start}").as_bytes())?;
        Ok(count)
    }
}

fn parse(text: &str) -> Option<(u64, u64, u64)> {
    let mut parts = text.lines().next()?.split(':');
    let mut next = || parts.next()?.trim().parse().ok();
    let parsed = (next()?, next()?, next()?);
    parts.next().is_none().then_some(parsed)
}

/// Opens or makes a file of ours in a folder that strangers may write to.
fn open(path: &Path) -> io::Result<File> {
    let no_links = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default();
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(no_links)
        .open(path)
}

/// Locks as Python's lockutils does. The lock goes with the file.
fn lock(file: &File, until: Instant) -> io::Result<()> {
    loop {
        match fcntl_lock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(error) => {
                let error = io::Error::from(error);
                let taken = matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::PermissionDenied
                );
                if !taken || Instant::now() >= until {
                    return Err(error);
                }
            }
        }
        sleep(Duration::from_millis(5));
    }
}

/// The process group and the start time of its leader, which together stand for one life of a service.
///
/// A leader that has ended leaves its group without a start time; then the group alone must do.
fn generation() -> io::Result<(u64, Option<u64>)> {
    let own = std::fs::read_to_string("/proc/self/stat")?;
    // The program's name, in brackets, may contain anything; behind it come state, parent and group.
    let group = own
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(2)?.parse().ok())
        .ok_or_else(|| io::Error::other("/proc does not tell the process group"))?;
    // A container's process may have no group that it can see.
    let stat = match group {
        0 => own,
        _ => match std::fs::read_to_string(format!("/proc/{group}/stat")) {
            Ok(stat) => stat,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((group, None)),
            Err(error) => return Err(error),
        },
    };
    // Split at every space, as Python does: both must find the same number.
    let start = stat.split_whitespace().nth(21).and_then(|n| n.parse().ok());
    let start = start.ok_or_else(|| io::Error::other("/proc does not tell a start time"))?;
    Ok((group, Some(start)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::unique;

    fn counter(process: &str) -> (Counter, PathBuf) {
        let folder = std::env::temp_dir().join(format!("{process}-{}", unique()));
        std::fs::create_dir_all(&folder).unwrap();
        let counter = Counter {
            host: "h".to_owned(),
            process: process.to_owned(),
            locks: Some(folder.join("locks")),
            folder: folder.clone(),
        };
        (counter, folder)
    }

    #[test]
    fn names_count_up_and_start_again_with_another_generation() {
        let (counter, folder) = counter("p");
        let file = folder.join("h_p_qmanager");
        assert_eq!(counter.next().unwrap(), "h:p:1");
        assert_eq!(counter.next().unwrap(), "h:p:2");
        let (group, start) = generation().unwrap();
        let start = start.unwrap_or(0);
        assert_eq!(
            std::fs::read_to_string(&file).unwrap(),
            format!("{group}:2:{start}")
        );
        for (before, next) in [
            (format!("{group}:41:{start}"), "h:p:42"),
            (format!("{}:41:{start}", group + 1), "h:p:1"),
            ("nonsense".to_owned(), "h:p:1"),
            (String::new(), "h:p:1"),
            (format!("{group}:41:{start}:9"), "h:p:1"),
        ] {
            std::fs::write(&file, &before).unwrap();
            assert_eq!(counter.next().unwrap(), next, "{before}");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn threads_never_share_a_name() {
        let (counter, folder) = counter("q");
        let mut names: Vec<String> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| (0..25).map(|_| counter.next().unwrap()).collect::<Vec<_>>())
                })
                .collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().unwrap())
                .collect()
        });
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 200);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_link_in_a_folder_of_strangers_is_not_followed() {
        let (counter, folder) = counter("r");
        let victim = folder.join("victim");
        std::fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, folder.join("h_r_qmanager")).unwrap();
        let error = counter.next().unwrap_err();
        assert_eq!(error.kind(), messaging_core::ErrorKind::Config);
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
