//! The child that executes cases: it reports each form in a line, and may die of a case.
#![expect(
    unsafe_code,
    reason = "fork, and a counter that parent and child share"
)]

use super::FormResult;
use super::{Job, run_form};
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::FromRawFd;
use std::sync::atomic::{AtomicU64, Ordering};

/// A child that has not finished a case in so many seconds of its own processor time hangs.
const PATIENCE_SECONDS: i64 = 30;

/// Where the child is: the number of the job in the high half, of the case in the low half.
struct Place(*mut AtomicU64);

impl Place {
    fn new() -> Result<Self> {
        let (rw, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
        );
        // SAFETY: a new mapping.
        let at = unsafe { libc::mmap(core::ptr::null_mut(), 4096, rw, flags, -1, 0) };
        anyhow::ensure!(at != libc::MAP_FAILED, "no memory to share with the child");
        Ok(Self(at.cast()))
    }

    fn get(&self) -> &AtomicU64 {
        // SAFETY: mapped and zeroed in `new`, unmapped in `drop`.
        unsafe { &*self.0 }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`.
        unsafe { libc::munmap(self.0.cast(), 4096) };
    }
}

/// Runs the jobs in children, and passes each result on.
///
/// # Errors
/// If no child can be made.
pub(super) fn run_all(
    jobs: &[Job],
    mut done: impl FnMut(&Job, FormResult) -> Result<()>,
) -> Result<()> {
    let place = Place::new()?;
    let (mut first, mut first_case) = (0, 0);
    while first < jobs.len() {
        let (bits, end) = (jobs[first].bits, jobs.len());
        // A child executes code of one kind.
        let end = (first..end)
            .find(|&n| jobs[n].bits != bits)
            .unwrap_or(jobs.len());
        let death = run_child(&jobs[..end], first, first_case, &place, &mut done)?;
        let Some(signal) = death else {
            (first, first_case) = (end, 0);
            continue;
        };
        let at = place.get().load(Ordering::Relaxed);
        let (job, case) = ((at >> 32) as usize, at & 0xffff_ffff);
        let failure = FormResult {
            differences: 1,
            examples: vec![format!("case {case}: the child ended by signal {signal}")],
            ..FormResult::default()
        };
        done(&jobs[job], failure)?;
        (first, first_case) = match case + 1 < jobs[job].cases {
            true => (job, case + 1),
            false => (job + 1, 0),
        };
    }
    Ok(())
}

/// Runs jobs from `first` on; returns the signal that ended the child early.
fn run_child(
    jobs: &[Job],
    first: usize,
    first_case: u64,
    place: &Place,
    done: &mut impl FnMut(&Job, FormResult) -> Result<()>,
) -> Result<Option<i32>> {
    let mut ends = [0; 2];
    // SAFETY: an array of two descriptors.
    let made = unsafe { libc::pipe(ends.as_mut_ptr()) };
    anyhow::ensure!(made == 0, "no pipe to the child");
    let [reader, writer] = ends;
    // SAFETY: the child uses nothing of other threads, and leaves through _exit.
    let child = unsafe { libc::fork() };
    anyhow::ensure!(child >= 0, "no child");
    if child == 0 {
        // SAFETY: our end of our pipe.
        let pipe = unsafe { std::fs::File::from_raw_fd(writer) };
        let is_well = work(jobs, first, first_case, place, pipe).is_ok();
        // SAFETY: ends the child without the parent's destructors.
        unsafe { libc::_exit(i32::from(!is_well)) };
    }
    // SAFETY: our ends of our pipe.
    let pipe = unsafe {
        libc::close(writer);
        std::fs::File::from_raw_fd(reader)
    };
    for line in BufReader::new(pipe).lines() {
        let line = line.context("the child's report")?;
        // A child that dies may leave half a line.
        let Ok((n, result)) = serde_json::from_str::<(usize, FormResult)>(&line) else {
            break;
        };
        done(&jobs[n], result)?;
    }
    let mut status = 0;
    // SAFETY: our child.
    unsafe { libc::waitpid(child, &mut status, 0) };
    anyhow::ensure!(
        !libc::WIFEXITED(status) || libc::WEXITSTATUS(status) == 0,
        "the child failed"
    );
    Ok(libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)))
}

/// Lets a signal end this process when the patience is over. On a busy machine the clock on the wall
/// says nothing of the child.
fn be_patient() {
    let zero = libc::timeval {
        tv_sec: 0,
        tv_usec: 0,
    };
    let timer = libc::itimerval {
        it_interval: zero,
        it_value: libc::timeval {
            tv_sec: PATIENCE_SECONDS,
            ..zero
        },
    };
    // SAFETY: a timer of this process.
    unsafe { libc::setitimer(libc::ITIMER_PROF, &raw const timer, core::ptr::null_mut()) };
}

/// What the child does.
fn work(
    jobs: &[Job],
    first: usize,
    first_case: u64,
    place: &Place,
    mut pipe: std::fs::File,
) -> Result<()> {
    let Some(job) = jobs.get(first) else {
        return Ok(());
    };
    let mut sides = super::Sides::new(job.bits, job.is_translated);
    for (n, job) in jobs.iter().enumerate().skip(first) {
        let begin = if n == first { first_case } else { 0 };
        let result = run_form(&mut sides, job, begin, |case| {
            place
                .get()
                .store((n as u64) << 32 | case, Ordering::Relaxed);
            if case.is_multiple_of(1024) || case == begin {
                be_patient();
            }
        });
        writeln!(pipe, "{}", serde_json::to_string(&(n, result))?)?;
    }
    Ok(())
}
