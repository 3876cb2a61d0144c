"""python -m cqkv.eval: tasks of lm-evaluation-harness with the 16-bit cache and coded ones."""

import argparse
import json
import os
import pathlib
import shlex
import sys

import cqkv
from cqkv._build import GGML_VERSION
from cqkv.eval import STOCK_TYPES

_TASKS = pathlib.Path(__file__).resolve().parent / "tasks"


def _parse(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m cqkv.eval",
        description="Asks a model the same questions with several caches: 16 bits first, then "
                    "llama.cpp's types, then each codebook with its exact window and without one "
                    "(short prompts lie within the window, and prove nothing). Prints scores and "
                    "their paired differences to the first cache, with standard errors.",
        epilog="Tasks: those of this package (--list) and of lm-evaluation-harness, which may need "
               "a network. Example: python -m cqkv.eval -m model.gguf --kv-codebook "
               "model.cq-1.00b.gguf --tasks cq_piqa lookup_1k --limit 100 --json scores.json")
    parser.add_argument("--list", action="store_true", help="print this package's tasks and stop")
    parser.add_argument("-m", "--model", help="the model (GGUF)")
    parser.add_argument("--kv-codebook", nargs="*", default=[], metavar="FNAME")
    parser.add_argument("--types", nargs="*", default=[], metavar="TYPE",
                        choices=[name for name in STOCK_TYPES if name != "f16"],
                        help="types of llama.cpp's own cache beside f16")
    parser.add_argument("--tasks", nargs="+", metavar="TASK")
    parser.add_argument("--limit", type=int, help="questions of each task, the first ones")
    parser.add_argument("--num-fewshot", type=int, help="examples before each question")
    parser.add_argument("-c", "--ctx-size", type=int, default=4096)
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count())
    parser.add_argument("--windowed-only", action="store_true",
                        help="no rows without the exact window")
    parser.add_argument("--json", metavar="FNAME", help="write all scores to this file")
    options = parser.parse_args(arguments)
    if not options.list and not (options.model and options.tasks):
        parser.error("-m and --tasks are required")
    return options


def _caches(options):
    """[(name, cache, window)]"""
    caches = [(name, name, None) for name in ["f16", *options.types]]
    for path in options.kv_codebook:
        name = pathlib.Path(path).name
        caches.append((name, path, None))
        if not options.windowed_only:
            caches.append((f"{name}, no window", path, 0))
    return caches


def _ask(options, cache, window):
    """{task: scores} with one cache."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    from cqkv.eval.model import CacheLM
    from cqkv.eval.report import scores
    from cqkv.eval.scorer import open_model
    llm = CacheLM(open_model(options.model, cache, options.ctx_size, options.threads, window,
                             sinks=window))
    try:
        found = lm_eval.simple_evaluate(
            llm, tasks=options.tasks, limit=options.limit, num_fewshot=options.num_fewshot,
            task_manager=TaskManager(include_path=str(_TASKS)), bootstrap_iters=0)
    finally:
        llm.close()
    return {task: scores(samples) for task, samples in found["samples"].items()}


def main(arguments=None):
    options = _parse(arguments)
    if options.list:
        print("\n".join(sorted(path.stem for path in _TASKS.glob("[!_]*.yaml"))))
        return 0
    try:
        import lm_eval
    except ImportError:
        sys.exit("cqkv.eval: lm-evaluation-harness is not installed: pip install lm-eval")
    from cqkv.eval.report import rows, table
    results = {}
    for name, cache, window in _caches(options):
        print(f"== {name}", file=sys.stderr)
        results[name] = _ask(options, cache, window)
    lines = rows(results)
    print(table(lines))
    if options.json:
        record = {"command": shlex.join(sys.argv), "cqkv": cqkv.version(), "ggml": GGML_VERSION,
                  "lm_eval": lm_eval.__version__, "model": options.model,
                  "codebooks": {path: cqkv.Codebook.open(path).identity
                                for path in options.kv_codebook},
                  "rows": lines, "scores": results}
        partial = pathlib.Path(options.json + ".part")
        partial.write_text(json.dumps(record, indent=1), encoding="utf-8")
        partial.replace(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
