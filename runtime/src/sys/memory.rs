//! Giving memory back: what a process that only waits does not need.

use std::ffi::c_void;

/// Gives free heap memory back to the kernel.
pub fn trim_heap() {
    // SAFETY: no preconditions.
    unsafe { libc::malloc_trim(0) };
}

/// Lets go of the program's own code and constants, page by page; what is used again comes back from the page cache.
/// A process that has done its work and waits keeps next to nothing then.
///
/// Source: `madvise(2)`, `MADV_DONTNEED` on a private mapping of a file; `getauxval(3)`.
pub fn forget_program() {
    // Source: elf(5).
    const LOAD: u32 = 1;
    const WRITABLE: u32 = 2;
    // SAFETY: the kernel maps the program's headers where AT_PHDR says, for as long as the process lives. Only segments
    // that cannot be written to are given up, whole pages of them, so everything comes back as it was.
    unsafe {
        let address = libc::getauxval(libc::AT_PHDR);
        let count = libc::getauxval(libc::AT_PHNUM) as usize;
        let page = libc::getauxval(libc::AT_PAGESZ);
        if address == 0 || page == 0 {
            return;
        }
        let headers = std::slice::from_raw_parts(address as *const libc::Elf64_Phdr, count);
        let segments = || headers.iter().filter(|header| header.p_type == LOAD);
        // Those of a position independent program are not where they say.
        let end = |header: &libc::Elf64_Phdr| header.p_vaddr + header.p_memsz;
        if !segments().any(|header| (header.p_vaddr..end(header)).contains(&address)) {
            return;
        }
        for header in segments().filter(|header| header.p_flags & WRITABLE == 0) {
            let first = header.p_vaddr.next_multiple_of(page);
            let end = end(header) / page * page;
            if first < end {
                libc::madvise(first as *mut c_void, (end - first) as usize, libc::MADV_DONTNEED);
            }
        }
    }
}
