"""Compiles the kernel of the CPU on the machine it runs on, once, and keeps it in the user's cache.

The processor's own instructions are used, which no package could bring along. It takes two seconds;
where there is no C++ compiler with OpenMP there is no such kernel, and stock operators are used.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path

from ditscope.core.atomic import file_sha256
from ditscope.core.cache import cache_folder

SOURCE = Path(__file__).with_name("rows.cpp")
HEADER = Path(__file__).with_name("scores.h")
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-fno-math-errno")
SECONDS = 120
DIGITS = 20
COMPILERS = ("g++", "clang++", "c++")

SWITCH = "DITSCOPE_KERNELS"
"""Environment variable: 0 means that nothing is compiled."""


@lru_cache(maxsize=1)
def compiled() -> ctypes.CDLL | None:
    """The compiled kernel, or None where there is none; if compiling failed, that is warned of."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if os.environ.get(SWITCH) == "0" or compiler is None or os.name != "posix":
        return None
    try:
        if folder := cache_folder("kernels"):
            return _loaded(compiler, folder)
        with tempfile.TemporaryDirectory(prefix="ditscope-") as temporary:
            return _loaded(compiler, Path(temporary))  # may be unlinked once it is open
    except (OSError, subprocess.SubprocessError) as reason:
        said = (getattr(reason, "stderr", None) or "").strip() or str(reason)
        warnings.warn(
            f"the attention kernel could not be compiled, so statistics will be slower "
            f"({SWITCH}=0 says not to try): {said.splitlines()[0][:200]}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _loaded(compiler: str, folder: Path) -> ctypes.CDLL:
    """Compile unless that was done before; several processes may do so at once."""
    flags = (*FLAGS, *_processor_flags())
    sources = (path.read_text(encoding="utf-8") for path in (HEADER, SOURCE))
    made_of = "\0".join((*sources, compiler, _version(compiler), *flags, _processor()))
    name = f"rows-{hashlib.sha256(made_of.encode()).hexdigest()[:DIGITS]}"
    found = ctypes.CDLL(str(_whole(folder, name) or _made(compiler, flags, folder, name)))
    found.ditscope_workspace.restype = ctypes.c_int64
    found.ditscope_reads_bfloat16.restype = ctypes.c_int32
    found.ditscope_rows.restype = None
    return found


def _whole(folder: Path, name: str) -> Path | None:
    """A library of that name with the content that its name tells; one cut short would kill us."""
    for library in sorted(folder.glob(f"{name}-*.so")):
        if library.is_file() and library.stem == f"{name}-{file_sha256(library)[:DIGITS]}":
            return library
    return None


def _made(compiler: str, flags: tuple[str, ...], folder: Path, name: str) -> Path:
    with tempfile.TemporaryDirectory(dir=folder, prefix="compiling-") as beside:
        fresh = Path(beside) / "rows.so"
        _run(compiler, *flags, str(SOURCE), "-o", str(fresh))
        library = folder / f"{name}-{file_sha256(fresh)[:DIGITS]}.so"
        fresh.replace(library)
    return library


def _run(*command: str) -> str:
    done = subprocess.run(  # noqa: S603 - a compiler and our own source
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SECONDS,
        check=True,
    )
    return done.stdout


def _version(compiler: str) -> str:
    return _run(compiler, "--version")


def _processor_flags() -> tuple[str, ...]:
    if platform.machine() in ("x86_64", "AMD64"):
        return ("-march=native", "-mprefer-vector-width=512")
    return ("-mcpu=native",)


def _processor() -> str:
    """What `native` means: a home may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    told = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(told)))
