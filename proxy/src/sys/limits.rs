//! Open files: a proxy needs two descriptors per connection, and shells hand out 1,024.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit to the hard one; returns what holds now. `None` is without limit.
pub fn raise_open_files() -> Option<u64> {
    let held = getrlimit(Resource::Nofile);
    if held.current != held.maximum && setrlimit(Resource::Nofile, Rlimit { current: held.maximum, ..held }).is_ok() {
        return held.maximum;
    }
    held.current
}
