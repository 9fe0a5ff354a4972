"""What every CUDA kernel takes of the GPU: registers, shared memory, spills, and the occupancy that these allow.

    python -m benchmarks.resources                     compiles cuda_ext/*_cuda.cu for sm_90; needs nvcc, but no GPU
    python -m benchmarks.resources --page docs/performance.md    puts them into the page, between its two marks

Occupancy is the share of a multiprocessor's 64 warps that fit at once (CUDA programming guide, compute capability 9.0:
65536 registers, given to warps in pieces of 256; 228 KiB of shared memory, given in pieces of 128 bytes, 1 KiB of it
lost a block; 32 blocks). The network's kernels ask for shared memory at their launch, by the number of inputs.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from benchmarks.report import markdown_table, replaced
from nerf_bridge.ops import build, grid_mlp
from nerf_bridge.run.files import write_text

ARCHITECTURE = "sm_90"
MARKS = ("<!-- resources: written by benchmarks/resources.py -->", "<!-- end of resources -->")
FLAGS = ("-O3", "-std=c++17", "--fmad=false", f"-arch={ARCHITECTURE}", "-Xptxas", "-v", "-cubin")
WARPS, BLOCKS, REGISTERS, SHARED, SHARED_OF_A_BLOCK = 64, 32, 65536, 228 * 1024, 1024
REGISTER_PIECE, SHARED_PIECE, LANES, THREADS = 256, 128, 32, 128
INPUTS = (32, grid_mlp.MAX_INPUTS)  # of the network: 16 levels of 2 features, and the most there may be
COMPILE_SECONDS = 600


@dataclass(frozen=True)
class Kernel:
    """What one kernel takes.

    Attributes:
        source: the file's name.
        name: demangled, without its arguments.
        registers: of a thread.
        shared: bytes of a block: those that the compiler knows and, once `at_launch`, those asked for at the launch.
        asks: whether its file asks for shared memory at a launch.
        spilled: bytes of a thread that are stored to and loaded from local memory for want of registers.
        stack: bytes of a thread's stack frame.
    """

    source: str
    name: str
    registers: int
    shared: int
    asks: bool
    spilled: int
    stack: int


def occupancy(registers: int, shared: int, threads: int = THREADS) -> float:
    """Share of a multiprocessor's warps that blocks of `threads` threads fill when so many are there as fit."""
    warps = -(-threads // LANES)
    of_a_warp = -(-registers * LANES // REGISTER_PIECE) * REGISTER_PIECE
    of_a_block = -(-(shared + SHARED_OF_A_BLOCK) // SHARED_PIECE) * SHARED_PIECE
    fitting = (BLOCKS, WARPS // warps, REGISTERS // max(of_a_warp, 1) // warps, SHARED // of_a_block)
    return min(fitting) * warps / WARPS


def compile_report(source: Path, nvcc: str) -> str:
    """What ptxas says of `source`. Raises BuildError when it does not compile."""
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, *FLAGS, f"-I{build.source_dir() / 'include'}", str(source), "-o", f"{folder}/kernels.cubin"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False)
    if done.returncode != 0:
        cause = next((line for line in done.stderr.splitlines() if "error" in line), f"status {done.returncode}")
        raise build.BuildError(f"{source.name}: {cause}")
    return done.stderr


def parse_report(source: str, report: str, asks: bool = False) -> list[Kernel]:
    """The kernels of a ptxas report, in its order, with names as the compiler mangled them."""
    entry = re.compile(r"Compiling entry function '(\w+)'")
    stack = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
    kernels, name, frame = [], "", (0, 0, 0)
    for line in report.splitlines():
        if found := entry.search(line):
            name, frame = found[1], (0, 0, 0)
        elif found := stack.search(line):
            frame = (int(found[1]), int(found[2]), int(found[3]))
        elif name and (found := re.search(r"Used (\d+) registers", line)):
            shared = re.search(r"(\d+) bytes smem", line)
            size = int(shared[1]) if shared else 0
            spilled, stack_frame = frame[1] + frame[2], frame[0]
            kernels.append(Kernel(source, name, int(found[1]), size, asks, spilled, stack_frame))
            name = ""
    return kernels


def demangled(names: Sequence[str]) -> list[str]:
    """C++ names without namespace and arguments, through c++filt where it is there; else as they are."""
    try:
        done = subprocess.run(
            ["c++filt"], input="\n".join(names), capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return list(names)
    return [plain_name(line) for line in done.stdout.splitlines()]


def plain_name(kernel: str) -> str:
    """A kernel's name without return type, namespace and arguments, from its demangled signature."""
    line = kernel.replace("(anonymous namespace)::", "").removeprefix("void ")
    return re.sub(r"\(int\)", "", re.split(r"\((?!int\))", line)[0])


def examine() -> list[Kernel]:
    """Compile every CUDA source and read what its kernels take.

    Raises:
        BuildError: there is no nvcc, or a source does not compile.
    """
    nvcc = build.find_compiler("cuda")
    kernels = []
    for source in tqdm(build.source_files("cuda"), desc="compiling", unit="file"):
        asks = "extern __shared__" in source.read_text(encoding="utf-8")
        kernels += parse_report(source.name, compile_report(source, nvcc), asks)
    names = demangled([kernel.name for kernel in kernels])
    named = (replace(kernel, name=name) for kernel, name in zip(kernels, names, strict=True))
    return [launch for kernel in named for launch in at_launch(kernel)]


def at_launch(kernel: Kernel) -> list[Kernel]:
    """The kernel with the shared memory of its launches: the network's for each number of inputs, others as they are.

    Raises:
        ValueError: it asks for shared memory, and is none of the network's kernels.
    """
    if not kernel.asks:
        return [kernel]
    found = re.fullmatch(r"(fwd|bwd)<(\d+)(?:, (\d+))?>", kernel.name)
    if kernel.source != "mlp_cuda.cu" or not found:
        raise ValueError(f"{kernel.source}: how much shared memory {kernel.name} asks for is not known here: tell it")
    backward, width = found[1] == "bwd", int(found[2])
    launches = []
    for n_inputs in [int(found[3])] if found[3] else INPUTS:
        shared = kernel.shared + grid_mlp.shared_bytes(n_inputs, width, backward)
        name = kernel.name if found[3] else f"{kernel.name}, {n_inputs} inputs"
        launches.append(replace(kernel, name=name, shared=shared))
    return launches


def table(kernels: Sequence[Kernel]) -> list[list[str]]:
    """A header and a line for each kernel."""
    lines = [["source", "kernel", "registers", "shared, bytes", "spilled, bytes", "stack, bytes", "occupancy"]]
    for of in kernels:
        numbers = (f"{of.registers}", f"{of.shared:,}", f"{of.spilled}", f"{of.stack}")
        lines.append([of.source, of.name, *numbers, f"{occupancy(of.registers, of.shared):.0%}"])
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 0 when done, 2 with one line when something does not compile or the page does not fit."""
    parser = argparse.ArgumentParser(description="Print what every CUDA kernel takes of the GPU.")
    parser.add_argument("--page", type=Path, help="also put the table between the two marks of this page")
    options = parser.parse_args(arguments)
    try:
        lines = table(examine())
        if options.page:
            page = options.page.read_text(encoding="utf-8")
            write_text(options.page, replaced(page, markdown_table(lines), MARKS))
    except (build.BuildError, subprocess.TimeoutExpired, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
