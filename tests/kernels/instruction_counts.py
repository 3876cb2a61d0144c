#!/usr/bin/env python3
"""Pins how many instructions the kernels of one level execute, so that a regression shows
where times are too noisy to tell.

    instruction_counts.py COUNT_KERNELS LEVEL COMPILER_MAJOR

Counts are valgrind's, per token and KV head: the difference between two runs of
count_kernels over what was repeated, so that the program's start does not count. They are
the same on every machine but not with every compiler; only those below are known. Ends with
77 (skipped) where a count cannot be made. A smaller count fails too: pin it, or it will be
lost unnoticed."""

import re
import shutil
import subprocess
import sys
import tempfile

# PINNED[major version of g++][level][kernel], for a release build.
PINNED = {
    "12": {
        "scalar": {"score_codes": 2283.60, "accumulate_codes": 1830.39},
        "avx2": {"score_codes": 195.86, "accumulate_codes": 138.95},
    },
}
# A new point release moves a few instructions; a pass over memory more is 5 % and more.
TOLERANCE = 0.05
REPETITIONS = 2
SKIPPED = 77


def skip(why):
    print(f"skipped: {why}")
    sys.exit(SKIPPED)


def instructions(program, kernel, level, repetitions):
    """Instructions of a whole run, and the tokens that a repetition has."""
    with tempfile.NamedTemporaryFile(prefix="callgrind.") as out:
        result = subprocess.run(
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out.name}", program, kernel,
             level, str(repetitions)], capture_output=True, text=True)
        if result.returncode == SKIPPED:
            skip(f"under valgrind, {result.stderr.strip().splitlines()[-1]}")
        if result.returncode != 0:
            sys.exit(f"{program} {kernel} {level}: exit {result.returncode}\n{result.stderr}")
        summary = re.search(rb"^(?:summary|totals): (\d+)", out.read(), re.MULTILINE)
    if summary is None:
        sys.exit(f"callgrind wrote no summary\n{result.stderr}")
    return int(summary.group(1)), int(result.stdout.split()[0])


def count(program, kernel, level):
    once, _ = instructions(program, kernel, level, REPETITIONS)
    twice, n_tokens = instructions(program, kernel, level, 2 * REPETITIONS)
    return (twice - once) / (REPETITIONS * n_tokens)


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    program, level, compiler = sys.argv[1:]
    if shutil.which("valgrind") is None:
        skip("valgrind is not installed (Debian: valgrind)")
    if compiler not in PINNED:
        skip(f"nothing is pinned for g++ {compiler}, only for g++ {', '.join(PINNED)}")
    if level not in PINNED[compiler]:
        skip(f"nothing is pinned for level {level}, only for {', '.join(PINNED[compiler])}")
    failed = False
    for kernel, want in PINNED[compiler][level].items():
        got = count(program, kernel, level)
        print(f"{kernel} {level} g++ {compiler}: got {got:.2f} instructions per token and KV head, "
              f"want {want:.2f} within {TOLERANCE:.0%}")
        if abs(got - want) > TOLERANCE * want:
            failed = True
            print(f"  {got / want - 1:+.1%}: if the change is meant, set "
                  f'PINNED["{compiler}"]["{level}"]["{kernel}"] in {__file__} to {got:.2f}')
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
