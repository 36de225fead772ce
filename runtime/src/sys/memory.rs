//! The memory of this process: what it need not keep, and which file its program is mapped from.

use std::ffi::{c_int, c_void};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::slice;

use super::{check, ensure_single_threaded};

/// Gives free heap memory back to the kernel.
pub fn trim_heap() {
    // SAFETY: no preconditions.
    unsafe { libc::malloc_trim(0) };
}

/// What is mapped of the program's file: whole pages, as the kernel does it.
struct Segment {
    start: usize,
    end: usize,
    /// In the file.
    offset: i64,
    /// `PROT_*`.
    protection: c_int,
}

/// The headers of this program, if its segments are where they say: those of a position independent one are not.
///
/// Source: elf(5); `getauxval(3)`.
fn headers() -> Option<&'static [libc::Elf64_Phdr]> {
    // SAFETY: the kernel maps the headers where AT_PHDR says, for as long as the process lives.
    let (address, headers) = unsafe {
        let address = libc::getauxval(libc::AT_PHDR);
        let count = libc::getauxval(libc::AT_PHNUM) as usize;
        if address == 0 {
            return None;
        }
        (address, slice::from_raw_parts(address as *const libc::Elf64_Phdr, count))
    };
    let holds =
        |header: &libc::Elf64_Phdr| (header.p_vaddr..header.p_vaddr + header.p_filesz).contains(&address);
    headers.iter().any(|header| header.p_type == libc::PT_LOAD && holds(header)).then_some(headers)
}

fn segments(headers: &[libc::Elf64_Phdr], page: usize) -> impl Iterator<Item = Segment> {
    let loaded = headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_filesz > 0);
    loaded.map(move |header| {
        let (address, flags) = (header.p_vaddr as usize, header.p_flags);
        let given = |flag, protection| if flags & flag == 0 { 0 } else { protection };
        Segment {
            start: address / page * page,
            end: (address + header.p_filesz as usize).next_multiple_of(page),
            offset: header.p_offset as i64 - (address % page) as i64,
            protection: given(libc::PF_R, libc::PROT_READ)
                | given(libc::PF_W, libc::PROT_WRITE)
                | given(libc::PF_X, libc::PROT_EXEC),
        }
    })
}

fn page_size() -> usize {
    // SAFETY: no preconditions.
    unsafe { libc::getauxval(libc::AT_PAGESZ) as usize }
}

/// Lets go of the program's own code and constants, page by page; what is used again comes back from the page cache.
/// A process that has done its work and waits keeps next to nothing then.
///
/// Source: `madvise(2)`, `MADV_DONTNEED` on a private mapping of a file.
pub fn forget_program() {
    let Some(headers) = headers() else { return };
    for segment in segments(headers, page_size()).filter(|segment| segment.protection & libc::PROT_WRITE == 0)
    {
        // SAFETY: only segments that cannot be written to are given up, so everything comes back as it was.
        unsafe {
            libc::madvise(segment.start as *mut c_void, segment.end - segment.start, libc::MADV_DONTNEED)
        };
    }
}

/// Has this process run its program from `file` instead, which is the same file by another mount: as if it had been
/// executed from there, without starting again. Code and constants are mapped anew in place; of data, what has changed
/// since the start is taken along. Needs `CAP_SYS_ADMIN`, as the mount did, and a kernel that can restore processes.
///
/// The kernel makes sure that nothing is mapped from the old place any more before it changes what `/proc/self/exe`
/// means.
///
/// # Errors
/// The kernel's, or that the program has no fixed place or the process a second thread. Some of the program may then be
/// mapped from `file` already, which it does not notice.
///
/// Source: `mmap(2)`, `mremap(2)`; `prctl(2)`, `PR_SET_MM`.
pub fn run_from(file: BorrowedFd<'_>) -> io::Result<()> {
    ensure_single_threaded()?;
    let unfit = || io::Error::new(io::ErrorKind::Unsupported, "the program is position independent");
    let headers = headers().ok_or_else(unfit)?;
    let page = page_size();
    for segment in segments(headers, page) {
        let (place, len) = (segment.start as *mut c_void, segment.end - segment.start);
        let writable = segment.protection & libc::PROT_WRITE != 0;
        // SAFETY: what cannot be written to is replaced, in one step, by the same bytes of the same file. What can is
        // put together aside and then moved in its place in one step; there is no second thread, and nothing here
        // writes to static data in between, so no change is lost. Both stretches are `len` bytes of whole pages.
        unsafe {
            let (at, fixed) = if writable { (std::ptr::null_mut(), 0) } else { (place, libc::MAP_FIXED) };
            let flags = libc::MAP_PRIVATE | fixed;
            let mapped = libc::mmap(at, len, segment.protection, flags, file.as_raw_fd(), segment.offset);
            if mapped == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            if !writable {
                continue;
            }
            let present = slice::from_raw_parts(place.cast::<u8>(), len);
            let aside = slice::from_raw_parts_mut(mapped.cast::<u8>(), len);
            for (to, from) in aside.chunks_exact_mut(page).zip(present.chunks_exact(page)) {
                if to != from {
                    to.copy_from_slice(from);
                }
            }
            if libc::mremap(mapped, len, len, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, place)
                == libc::MAP_FAILED
            {
                return Err(io::Error::last_os_error());
            }
        }
    }
    // What the C library has made read-only after the start, as it does it.
    for header in headers.iter().filter(|header| header.p_type == libc::PT_GNU_RELRO) {
        let start = header.p_vaddr as usize / page * page;
        let end = (header.p_vaddr + header.p_memsz) as usize / page * page;
        if start < end {
            // SAFETY: nobody writes there after the start of the program.
            check(unsafe { libc::mprotect(start as *mut c_void, end - start, libc::PROT_READ) }.into())?;
        }
    }
    set_executable(file)
}

/// Sets what `/proc/self/exe` means. Everything else that goes with it stays what it is.
///
/// Source: `prctl(2)`, `PR_SET_MM_MAP`; `proc(5)`, `/proc/pid/stat`.
fn set_executable(file: BorrowedFd<'_>) -> io::Result<()> {
    /// `struct prctl_mm_map` of linux/prctl.h.
    #[repr(C)]
    struct Map {
        start_code: u64,
        end_code: u64,
        start_data: u64,
        end_data: u64,
        start_brk: u64,
        brk: u64,
        start_stack: u64,
        arg_start: u64,
        arg_end: u64,
        env_start: u64,
        env_end: u64,
        auxv: *const u64,
        auxv_size: u32,
        exe_fd: u32,
    }
    // It is made anew for each piece that is read, so all of it is read at once.
    let mut stat = [0; 1024];
    let len = std::fs::File::open("/proc/self/stat")?.read(&mut stat)?;
    let text = String::from_utf8_lossy(&stat[..len]);
    // The name, which may contain anything, is in parentheses; the field after it is the third.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |number: usize| -> io::Result<u64> {
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, format!("`/proc/self/stat` is `{text}`"));
        fields.get(number - 3).and_then(|field| field.parse().ok()).ok_or_else(wrong)
    };
    let map = Map {
        start_code: field(26)?,
        end_code: field(27)?,
        start_data: field(45)?,
        end_data: field(46)?,
        start_brk: field(47)?,
        // SAFETY: an address that cannot be changes nothing.
        brk: unsafe { libc::syscall(libc::SYS_brk, 0) } as u64,
        start_stack: field(28)?,
        arg_start: field(48)?,
        arg_end: field(49)?,
        env_start: field(50)?,
        env_end: field(51)?,
        auxv: std::ptr::null(),
        auxv_size: 0,
        exe_fd: file.as_raw_fd() as u32,
    };
    let (option, what) = (libc::PR_SET_MM, libc::PR_SET_MM_MAP);
    // SAFETY: `map` outlives the call, which changes what the kernel shows of this process, not its memory.
    check(unsafe { libc::prctl(option, what, &raw const map, size_of_val(&map), 0u64) }.into()).map(drop)
}
