"""What is lost when the disk is full from the N-th write on: `python -m benchmarks.full_disk`.

A run, a sweep and a plain grid are started once for each N on a small file system of their own,
which is full from their N-th write on (of blocks and of names); then it has room again, and the
same command is started again. Right is: one message and exit status 2, or a whole result; no
traceback; nothing half-written; what was finished is kept; the second start gives the numbers of a
sweep that nothing happened to.

Needs Linux, a C compiler, and the right to mount (root, in a namespace of its own).
"""

import argparse
import ctypes
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

#: Counts what is written below $T5TS_DISK (the number is kept in $T5TS_COUNT, for all processes)
#: and, before the write that is due, fills that file system. The kernel does the rest.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static long *at;                  /* writes so far, and the one that finds the disk full */
static const char *disk;
static dev_t device;

__attribute__((constructor)) static void begin(void) {
    int fd = syscall(SYS_openat, AT_FDCWD, getenv("T5TS_COUNT"), O_RDWR);
    struct stat seen;
    disk = getenv("T5TS_DISK");
    if (fd < 0 || !disk || stat(disk, &seen)) return;
    device = seen.st_dev;
    at = mmap(0, 16, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
}

static void fill(void) {
    char name[4096], block[65536] = {0};
    snprintf(name, sizeof name, "%s/.full", disk);
    int fd = syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_CREAT | O_APPEND, 0600);
    for (size_t size = sizeof block; size; size /= 2)
        while (syscall(SYS_write, fd, block, size) > 0) ;
    syscall(SYS_close, fd);
    for (int i = 0;; i++) {
        snprintf(name, sizeof name, "%s/.full-%d", disk, i);
        if ((fd = syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_CREAT, 0600)) < 0) break;
        syscall(SYS_close, fd);
    }
}

static void count(void) { if (__sync_add_and_fetch(at, 1) == at[1]) fill(); }
static void named(const char *path) {
    struct stat seen;
    char folder[4096];
    if (!at) return;
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash) slash[slash == folder] = 0; else strcpy(folder, ".");
    if (!stat(folder, &seen) && seen.st_dev == device) count();
}
static void opened(int fd) {
    struct stat seen;
    if (at && !fstat(fd, &seen) && seen.st_dev == device && S_ISREG(seen.st_mode)) count();
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define MODE(flags) va_list all; va_start(all, flags); \
    mode_t mode = (flags) & O_CREAT ? va_arg(all, mode_t) : 0; va_end(all); \
    if ((flags) & O_CREAT) named(path)
int open(const char *path, int flags, ...) {
    MODE(flags); return REAL(open)(path, flags, mode); }
int open64(const char *path, int flags, ...) {
    MODE(flags); return REAL(open64)(path, flags, mode); }
int openat(int d, const char *path, int flags, ...) {
    MODE(flags); return REAL(openat)(d, path, flags, mode); }
int openat64(int d, const char *path, int flags, ...) {
    MODE(flags); return REAL(openat64)(d, path, flags, mode); }
int mkdir(const char *path, mode_t mode) { named(path); return REAL(mkdir)(path, mode); }
int rename(const char *from, const char *to) { named(to); return REAL(rename)(from, to); }
ssize_t write(int fd, const void *data, size_t n) { opened(fd); return REAL(write)(fd, data, n); }
size_t fwrite(const void *data, size_t size, size_t n, FILE *file) {
    opened(fileno(file)); return REAL(fwrite)(data, size, n, file); }
"""

TINY = (
    "backbone=linear data=synthetic data.num_rows=400 seq_len=32 horizon=8 patch.patch_len=8"
    " data.windows_per_epoch=64 train.epochs=2 train.batch_size=32 tracker=none train.threads=1"
)
ARGUMENTS = {
    "run": [*TINY.split(), "hydra.run.dir=it"],
    "grid": ["--multirun", *TINY.split(), "optim.lr=1e-3,2e-3,3e-3", "hydra.sweep.dir=it"],
    "sweep": [
        "--multirun", *TINY.split(), "hydra/sweeper=t5ts", "hydra/sweeper/sampler=grid",
        "optim.lr=1e-3,2e-3,3e-3", "hydra.sweep.dir=it",
    ],
}  # fmt: skip
#: A sweep whose workers are processes, as a user has it; `sweep` runs them in its own.
ARGUMENTS["workers"] = ARGUMENTS["sweep"]


def command(kind: str, said: Path) -> None:
    """In a process of its own: what `python -m t5ts.run` does."""
    from t5ts.run import command as run

    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if kind == "sweep":
        from t5ts.sweep import coordinator
        from t5ts.sweep.worker import run_trials

        coordinator._with_pool = lambda work, _display: run_trials(work)
    sys.argv = ["t5ts.run", *ARGUMENTS[kind]]
    run()


def start(kind: str, said: Path) -> tuple[int, str]:
    """Run it to its end in the working directory: its status, and what it printed."""
    process = multiprocessing.get_context("fork").Process(target=command, args=(kind, said))
    process.start()
    process.join(300)
    if process.is_alive():
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    return int(process.exitcode or 0), said.read_text()


def numbers(folder: Path) -> dict[str, Any]:
    """The metrics of each finished run below a folder, by its place."""
    found = {}
    for path in folder.rglob("result.json"):
        try:
            found[str(path.parent.relative_to(folder))] = json.loads(path.read_text())["metrics"]
        except ValueError:
            found[str(path.parent.relative_to(folder))] = "not JSON"
    return found


def left_over(folder: Path) -> list[str]:
    """Files that were to be renamed, and such as were cut."""
    names = [path.name for path in folder.rglob("*") if path.name.endswith(".tmp")]
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".yaml", ".png") and path.is_file() and not path.stat().st_size:
            names.append(f"{path.name} is empty")
    return sorted(names)


def fault(kind: str, disk: Path, said: Path, due: Any, whole: dict[str, Any]) -> str:
    """What is wrong with the two starts, the first of which ran out of space; "" if nothing."""
    status, text = start(kind, said)
    found, faults = numbers(disk / "it"), []
    if "Traceback" in text:
        faults.append("traceback")
    if status not in (0, 2):
        faults.append(f"status {status}")
    # A plain grid runs all of its jobs: one for each that failed, and one about all.
    if status == 2 and not 1 <= text.count("t5ts: ") <= (4 if kind == "grid" else 1):
        faults.append(f"{text.count('t5ts: ')} messages")
    if status == 0 and found != whole:
        faults.append("exit 0 without its results")
    if any(found[name] != whole.get(name) for name in found):
        faults.append("wrong numbers")
    faults += [f"left {name}" for name in left_over(disk / "it")]
    due[1] = 0
    for path in disk.glob(".full*"):
        path.unlink()
    status, again = start(kind, said)
    if status or "Traceback" in again or numbers(disk / "it") != whole:
        faults.append(f"second start: status {status}, {len(numbers(disk / 'it'))} results")
    if faults:
        print(f"--- {faults}\n{text[-3000:]}\n--- second start\n{again[-1500:]}", file=sys.stderr)
    return "; ".join(sorted(set(faults))) + (f" (status {status})" if status else "")


def series(kind: str, first: int, step: int, place: Path, due: Any) -> Counter[str]:
    """One kind of command with each `step`-th write from the `first` on."""
    disk, said = place / "disk", place / "said.txt"

    def empty() -> None:
        os.chdir(disk)
        for path in disk.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        due[0] = due[1] = 0

    empty()
    status, text = start(kind, said)
    assert status == 0, text
    writes, whole = due[0], numbers(disk / "it")
    seen: Counter[str] = Counter()
    for number in range(first, writes + 1, step):
        empty()
        due[1] = number
        what = fault(kind, disk, said, due, whole) or "right"
        seen[what] += 1
        print(f"{kind}: full from write {number} of {writes} on: {what}", flush=True)
    print(f"{kind}: {writes} writes, {seen.total()} tried: {dict(seen)}", flush=True)
    return seen


def prepared(place: Path) -> Path:
    """A small file system in a mount namespace of its own, and the compiled shim."""
    (place / "disk").mkdir()
    (place / "count").write_bytes(bytes(16))
    (place / "shim.c").write_text(SHIM)
    compile_ = ["cc", "-shared", "-fPIC", "-O1", "-o", "shim.so", "shim.c", "-ldl"]
    subprocess.run(compile_, cwd=place, check=True)
    return place


def main() -> int:
    """Print each fault, and a line per kind; the exit status is 1 if there was any."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=ARGUMENTS, default=list(ARGUMENTS))
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--step", type=int, default=1, help="try only each STEP-th write")
    options = parser.parse_args()
    if "T5TS_DISK" not in os.environ:  # start again, inside
        with tempfile.TemporaryDirectory() as folder:
            place = prepared(Path(folder))
            variables = {"T5TS_DISK": place / "disk", "T5TS_COUNT": place / "count"}
            variables["LD_PRELOAD"] = place / "shim.so"
            mount = "mount -t tmpfs -o size=24m,nr_inodes=600 tmpfs $T5TS_DISK"
            return subprocess.call(
                ["unshare", "-m", "sh", "-c", f'{mount} && LD_PRELOAD="$SHIM" exec "$@"', "sh",
                 sys.executable, "-m", "benchmarks.full_disk", *sys.argv[1:]],
                env=os.environ | {"SHIM": str(variables.pop("LD_PRELOAD"))}
                | {name: str(path) for name, path in variables.items()},
            )  # fmt: skip
    import mmap

    place = Path(os.environ["T5TS_DISK"]).parent
    with (place / "count").open("r+b") as file:
        due = (ctypes.c_long * 2).from_buffer(mmap.mmap(file.fileno(), 16))
    import torch

    from t5ts import experiment  # noqa: F401 - loaded once, before the forks

    torch.set_num_threads(1)
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    seen = [series(kind, options.first, options.step, place, due) for kind in options.kinds]
    return int(any(set(one) != {"right"} for one in seen))


if __name__ == "__main__":
    sys.exit(main())
