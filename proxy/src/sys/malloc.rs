//! The allocator, with its settings compiled in: freed memory goes back to the system within about a second, from a thread
//! of its own. (With jemalloc's defaults, or glibc, a storm of connections is paid for until the process ends.)

use std::ffi::c_char;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A few arenas are enough: workers are few and allocate mostly from their thread caches.
/// Caches hold what a busy turn's requests give back, or each turn would go to the arena for it, and are looked through seldom.
/// They hold the buffers of bulk data too: the same memory again is still in the processor's caches (15 % less CPU per byte).
/// What is made per connection shares runs of 14 pages. With the usual ones, of a piece or two, the allocator's own books on ten
/// thousand connections keep two megabytes for good.
const SETTINGS: &[u8; 169] =
    b"background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0,narenas:4,tcache_max:262144,\
tcache_nslots_small_min:64,tcache_gc_incr_bytes:1048576,slab_sizes:4096-14336:14\0";

/// Read by jemalloc before `main`: a pointer to a C string, which `&'static` has the shape of.
///
/// Safety: the name is the one jemalloc declares (weakly) for exactly this; the type matches its `const char *`, and the
/// string ends with a zero byte.
#[unsafe(export_name = "malloc_conf")]
#[used]
pub static MALLOC_CONF: Option<&'static c_char> = Some(unsafe {
    // Safety: the pointer comes from a static array of at least one byte; u8 and c_char have the same layout.
    &*(SETTINGS.as_ptr().cast::<c_char>())
});

/// Gives back what this thread's cache holds, and with it the count of what was served from there. Workers do so once a second:
/// what a burst left is not kept, and the counts are whole.
pub fn empty_cache() {
    // Safety: the name is documented to take and give no value, and ends with a zero byte.
    unsafe {
        let nothing = std::ptr::null_mut::<std::ffi::c_void>();
        tikv_jemalloc_sys::mallctl(c"thread.tcache.flush".as_ptr(), nothing, std::ptr::null_mut(), nothing, 0);
    }
}

/// Gives freed pages whose second is over back to the system, in all arenas. jemalloc's own thread sleeps on while an arena has
/// less than four megabytes of them.
pub fn give_back() {
    // Safety: the name (4096: all arenas) is documented to take and give no value, and ends with a zero byte.
    unsafe {
        let nothing = std::ptr::null_mut::<std::ffi::c_void>();
        tikv_jemalloc_sys::mallctl(c"arena.4096.decay".as_ptr(), nothing, std::ptr::null_mut(), nothing, 0);
    }
}

/// Allocations made since the process started, up to when each thread last emptied its cache.
pub fn allocations() -> Option<u64> {
    tikv_jemalloc_ctl::epoch::advance().ok()?;
    // All arenas merged (4096), small and large.
    let counts = [&b"stats.arenas.4096.small.nrequests\0"[..], &b"stats.arenas.4096.large.nrequests\0"[..]];
    let mut sum = 0;
    for name in counts {
        // Safety: both names are documented as uint64_t and end with a zero byte.
        sum += unsafe { tikv_jemalloc_ctl::raw::read::<u64>(name) }.ok()?;
    }
    Some(sum)
}

/// Bytes that are allocated now.
pub fn allocated() -> Option<usize> {
    tikv_jemalloc_ctl::epoch::advance().ok()?;
    tikv_jemalloc_ctl::stats::allocated::read().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn settings_are_the_compiled_ones() {
        assert!(tikv_jemalloc_ctl::background_thread::read().unwrap());
        assert_eq!(tikv_jemalloc_ctl::opt::narenas::read().unwrap(), 4);
    }
}
