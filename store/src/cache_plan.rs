//! What a cache does about an object that it has not: wait for it, make room for it, or say that there is none.

use std::time::{Duration, SystemTime};

use crate::Digest;

/// Another process that has written nothing for so long is not waited for.
const STALLED: Duration = Duration::from_secs(60);

/// What a file's name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A whole object.
    Object,
    /// An object on its way.
    Part(Digest),
}

impl Kind {
    /// None for files that are not the cache's.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        match name.split_once('.') {
            None => name.parse::<Digest>().ok().map(|_| Self::Object),
            Some((digest, rest)) if rest.ends_with(".part") => digest.parse().ok().map(Self::Part),
            Some(_) => None,
        }
    }
}

/// A file of the cache.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub kind: Kind,
    pub name: String,
    /// What it takes, or will take, of the disk.
    pub num_bytes: u64,
    /// When it was last used or written to.
    pub modified: SystemTime,
    /// Whether any process holds it.
    pub in_use: bool,
}

/// An object that is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Want {
    pub digest: Digest,
    pub num_bytes: u64,
}

/// What to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Another process is fetching it.
    Wait,
    /// Fetch it, once these files are gone.
    Fetch {
        /// Names.
        remove: Vec<String>,
    },
    /// What is in use leaves no room.
    Full {
        /// Length of what is in use.
        in_use_bytes: u64,
    },
}

/// Decides about `want` in a cache of `files` that may take `max_bytes`.
pub(crate) fn plan(files: &[Seen], want: &Want, max_bytes: u64, now: SystemTime) -> Plan {
    if files.iter().any(|file| file.kind == Kind::Part(want.digest) && is_moving(file, now)) {
        return Plan::Wait;
    }
    let (in_use, unused): (Vec<_>, Vec<_>) = files.iter().partition(|file| file.in_use);
    let in_use_bytes = total(&in_use);
    match max_bytes.checked_sub(in_use_bytes).and_then(|left| left.checked_sub(want.num_bytes)) {
        None => Plan::Full { in_use_bytes },
        Some(max_kept_bytes) => Plan::Fetch { remove: surplus(unused, max_kept_bytes) },
    }
}

fn is_moving(part: &Seen, now: SystemTime) -> bool {
    // A time in the future is of a clock that was set back: it says that the part was written to.
    part.in_use && now.duration_since(part.modified).unwrap_or_default() < STALLED
}

fn total(files: &[&Seen]) -> u64 {
    files.iter().map(|file| file.num_bytes).sum()
}

/// Parts, as those that nobody holds are of processes that have died, and the longest unused until no more than
/// `max_kept_bytes` are left.
fn surplus(mut unused: Vec<&Seen>, max_kept_bytes: u64) -> Vec<String> {
    unused.sort_by_key(|file| (file.kind == Kind::Object, file.modified));
    let mut kept_bytes = total(&unused);
    let mut names = Vec::new();
    for file in unused {
        if file.kind == Kind::Object && kept_bytes <= max_kept_bytes {
            break;
        }
        kept_bytes -= file.num_bytes;
        names.push(file.name.clone());
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An unused object that was last used so many seconds ago.
    fn object(name: &str, num_bytes: u64, age_s: u64) -> Seen {
        let modified = now() - Duration::from_secs(age_s);
        Seen { kind: Kind::Object, name: name.into(), num_bytes, modified, in_use: false }
    }

    fn part(digest: Digest, num_bytes: u64, age_s: u64) -> Seen {
        Seen { kind: Kind::Part(digest), ..object("part", num_bytes, age_s) }
    }

    fn in_use(file: Seen) -> Seen {
        Seen { in_use: true, ..file }
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)
    }

    fn planned(files: &[Seen], num_bytes: u64, max_bytes: u64) -> Plan {
        plan(files, &Want { digest: Digest::of(b"wanted"), num_bytes }, max_bytes, now())
    }

    fn removed(names: &[&str]) -> Plan {
        Plan::Fetch { remove: names.iter().map(|name| (*name).to_owned()).collect() }
    }

    #[test]
    fn the_longest_unused_go_until_there_is_room() {
        let files = [object("young", 30, 1), object("old", 30, 9), object("middle", 30, 5)];
        assert_eq!(planned(&files, 10, 100), removed(&[]), "it just fits");
        assert_eq!(planned(&files, 11, 100), removed(&["old"]));
        assert_eq!(planned(&files, 41, 100), removed(&["old", "middle"]));
        assert_eq!(planned(&files, 100, 100), removed(&["old", "middle", "young"]));
        assert_eq!(planned(&files, 101, 100), Plan::Full { in_use_bytes: 0 });
        assert_eq!(planned(&files, 1, u64::MAX), removed(&[]));
    }

    #[test]
    fn what_is_in_use_stays() {
        let files = [in_use(object("old", 30, 9)), object("young", 30, 1)];
        assert_eq!(planned(&files, 50, 100), removed(&["young"]));
        assert_eq!(planned(&files, 71, 100), Plan::Full { in_use_bytes: 30 });
    }

    #[test]
    fn a_part_that_moves_is_waited_for_and_others_are_not() {
        let (wanted, other) = (Digest::of(b"wanted"), Digest::of(b"other"));
        assert_eq!(planned(&[in_use(part(wanted, 30, 59))], 30, 100), Plan::Wait);
        assert_eq!(planned(&[in_use(part(wanted, 30, 60))], 30, 100), removed(&[]), "it has stalled");
        assert_eq!(planned(&[in_use(part(other, 30, 1))], 30, 100), removed(&[]));
        assert_eq!(planned(&[part(wanted, 30, 1)], 30, 100), removed(&["part"]), "its process has died");
    }

    #[test]
    fn names_say_what_a_file_is() {
        let digest = Digest::of(b"x");
        assert_eq!(Kind::of_name(&digest.to_string()), Some(Kind::Object));
        assert_eq!(Kind::of_name(&format!("{digest}.aBc123.part")), Some(Kind::Part(digest)));
        for foreign in ["lock", "notes.txt", "x.part", &format!("{digest}.idx")] {
            assert_eq!(Kind::of_name(foreign), None, "{foreign}");
        }
    }
}
