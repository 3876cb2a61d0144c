"""The command line of cqkv without a model: help, exit codes, messages, inspect, and
what `run` would start. With a real model see cli_model_test.py."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

CQKV = os.environ["CQKV_PROGRAM"]
MAKE_CODEBOOK = os.environ["CQKV_MAKE_CODEBOOK"]
COMMANDS = ["calibrate", "perplexity", "run", "serve", "find", "inspect", "info"]


def run(*arguments, env=None):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LLAMA_ARG_")}
    environment.update(env or {})
    return subprocess.run([CQKV, *arguments], capture_output=True, text=True, timeout=120,
                          env=environment)


def write_model(path, architecture="llama", name="Tiny", n_layers=2, n_kv_heads=2):
    """A GGUF with the header of a model of heads of 16 channels, and no weights."""
    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    def string_key(key, value):
        return text(key) + struct.pack("<i", 8) + text(value)

    def number_key(key, value):
        return text(key) + struct.pack("<iI", 4, value)

    keys = [string_key("general.architecture", architecture), string_key("general.name", name),
            number_key(architecture + ".block_count", n_layers),
            number_key(architecture + ".embedding_length", 64),
            number_key(architecture + ".attention.head_count", 4),
            number_key(architecture + ".attention.head_count_kv", n_kv_heads)]
    with open(path, "wb") as out:
        out.write(b"GGUF" + struct.pack("<Iqq", 3, 0, len(keys)) + b"".join(keys))


class CliTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.model = self.path("model.gguf")
        self.codebook = self.path("codebook.gguf")
        write_model(self.model)
        self.make_codebook(self.codebook)

    def path(self, name):
        return os.path.join(self.folder.name, name)

    def make_codebook(self, path, n_layers=2, config="4c4b", n_kv_heads=2, architecture="llama"):
        subprocess.run([MAKE_CODEBOOK, path, str(n_layers), config, str(n_kv_heads), "16",
                        architecture], check=True)

    def expect(self, result, code, *words):
        self.assertEqual(result.returncode, code, result.stderr + result.stdout)
        for word in words:
            self.assertIn(word, result.stderr)
        if code != 0:
            self.assertTrue(result.stderr.startswith("cqkv"), result.stderr)

    # Help and version

    def test_help_names_every_command(self):
        result = run("--help")
        self.assertEqual(result.returncode, 0)
        for command in COMMANDS:
            self.assertIn(command, result.stdout)

    def test_help_of_every_command_has_an_example(self):
        for command in COMMANDS:
            result = run(command, "--help")
            self.assertEqual(result.returncode, 0, command)
            self.assertIn("Example", result.stdout)
            self.assertIn("cqkv " + command, result.stdout)
            self.assertEqual(result.stderr, "")

    def test_version(self):
        result = run("--version")
        self.assertEqual(result.returncode, 0)
        self.assertRegex(result.stdout, r"^cqkv \d+\.\d+\.\d+\n$")

    # Wrong use: exit code 2. Each line: a command line, and words that its message must have.

    def expect_all(self, code, lines):
        for line, words in lines:
            with self.subTest(line=line):
                result = run(*line)
                self.expect(result, code, *words)
                self.assertEqual(result.stdout, "")
                for text in result.stderr.splitlines():
                    self.assertLess(len(text), 400, "a message, not a listing")

    def test_no_or_unknown_command(self):
        self.expect_all(2, [
            ([], ["no command", *COMMANDS, "bench"]),
            (["frobnicate"], ["'frobnicate'", *COMMANDS]),
            (["calibrat", "-m", "x"], ["'calibrat'", "did you mean 'calibrate'?"]),
            (["perplexty"], ["did you mean 'perplexity'?"]),
            (["--frobnicate", "info"], ["unknown flag '--frobnicate'"]),
            (["--frobnicate"], ["unknown flag '--frobnicate'", "calibrate"]),
            (["bench"], ["no command", "attention, encode, model"]),
            (["bench", "attentoin", "--check"], ["'attentoin'", "did you mean 'attention'?"]),
        ])

    def test_unknown_flag(self):
        self.expect_all(2, [
            (["inspect", "--frobnicate", self.codebook], ["cqkv inspect: ", "'--frobnicate'"]),
            (["info", "-z"], ["cqkv info: ", "'-z'"]),
            (["run", "-m", self.model, "--kv-codebok", self.codebook],
             ["'--kv-codebok'", "did you mean '--kv-codebook'?"]),
            (["bench", "encode", "--row", "3"], ["cqkv bench encode: ", "did you mean '--rows'?"]),
            (["inspect", self.codebook, "more"], ["unexpected argument 'more'"]),
        ])

    # Every flag that takes a number: what is too small, too large, and no number.
    NUMBERS = [
        ("calibrate", "-c", 2, 1 << 22), ("calibrate", "--n-tokens", 2, 1 << 31),
        ("calibrate", "-t", 1, 512), ("calibrate", "--max-iterations", 1, 1000000),
        ("calibrate", "-s", 0, (1 << 63) - 1), ("calibrate", "--window", 0, 1 << 20),
        ("calibrate", "--sinks", 0, 1 << 20),
        ("perplexity", "-c", 4, 1 << 22), ("perplexity", "-b", 1, 1 << 22),
        ("perplexity", "-ub", 1, 1 << 22), ("perplexity", "-t", 1, 512),
        ("perplexity", "--window", 0, 1 << 20), ("perplexity", "--sinks", 0, 1 << 20),
        ("perplexity", "--spare", 0, 1 << 20),
        *((command, flag, 0, 1 << 20) for command in ("run", "serve", "info", "bench model")
          for flag in ("--window", "--sinks", "--spare")),
        ("info", "-c", 1, 1 << 31), ("info", "-np", 1, 256),
        ("bench attention", "-t", 1, 512), ("bench attention", "--tokens", 1, 1 << 22),
        ("bench attention", "--head-dim", 1, 1024), ("bench attention", "--queries", 1, 65536),
        ("bench attention", "--seqs", 1, 1024), ("bench attention", "--gqa", 1, 128),
        ("bench attention", "--kv-heads", 1, 128), ("bench attention", "--key-heads", 0, 1 << 22),
        ("bench attention", "--first-position", 0, 1 << 22),
        ("bench encode", "--rows", 1, 65536), ("bench encode", "--head-dim", 1, 1024),
        ("bench encode", "--kv-heads", 1, 128),
        ("bench model", "--depths", 0, 1 << 22), ("bench model", "--prompt", 0, 1 << 22),
        ("bench model", "--gen", 0, 1 << 22), ("bench model", "--repeat", 1, 1000),
        ("bench model", "-t", 1, 512),
    ]

    def test_impossible_numbers(self):
        for command, flag, lowest, highest in self.NUMBERS:
            for value in (lowest - 1, highest + 1, "many", "1e3", "", "99999999999999999999"):
                self.expect_all(2, [([*command.split(), flag, str(value)],
                                     [f"cqkv {command}: ", f"got '{value}'",
                                      f"from {lowest} to {highest}"])])
        for command, flag, lowest, highest in (("bench attention", "--seconds", 0, 3600),
                                               ("bench encode", "--seconds", 0, 3600),
                                               ("bench attention", "--rope-base", 1, "1e+09")):
            for value in ("-1", "1e10", "nan", "inf", "long"):
                self.expect_all(2, [([*command.split(), flag, value],
                                     [f"got '{value}'", f"from {lowest} to {highest}"])])
        for value in ("0", "-2"):
            self.expect_all(2, [(["perplexity", "--chunks", value],
                                 [f"got '{value}'", "or -1 for all"])])

    def test_no_number_is_forgotten(self):
        tested = {(command, flag) for command, flag, _, _ in self.NUMBERS}
        tested.add(("perplexity", "--chunks"))
        short = {"--ubatch-size": "-ub", "--parallel": "-np"}
        for command in COMMANDS + ["bench attention", "bench encode", "bench model"]:
            for names in re.findall(r"^  (-[-\w,]+) N(?:[=, ]|$)",
                                    run(*command.split(), "--help").stdout, re.MULTILINE):
                flags = names.split(",")
                flags += [short[flag] for flag in flags if flag in short]
                self.assertTrue(any((command, flag) in tested for flag in flags),
                                f"cqkv {command} {names}: add it to NUMBERS")

    def test_names_that_are_empty(self):
        for command, flags in (("calibrate", ("-m", "-f", "-o", "--json-field")),
                               ("perplexity", ("-m", "-f", "--kv-codebook", "--json")),
                               ("run", ("-m", "--kv-codebook")), ("serve", ("-m",)),
                               ("info", ("-m", "--kv-codebook")),
                               ("bench attention", ("--json", "--kv-codebook")),
                               ("bench encode", ("--json",)),
                               ("bench model", ("-m", "--kv-codebook", "--json"))):
            for flag in flags:
                self.expect_all(2, [([*command.split(), flag, ""], ["got", "name"])])
        self.expect_all(2, [(["inspect", ""], ["empty name"])])

    def test_options_of_variants(self):
        base = ["perplexity", "-m", self.model, "-f", self.model, "--kv-codebook"]
        known = ["@ub:N", "@window:N", "@sinks:N", "@spare:N", "@bytes:0"]
        self.expect_all(2, [
            ([*base, "cb.gguf@foo:1"], ["cb.gguf@foo:1", "unknown option '@foo'", *known]),
            ([*base, "a/cb.gguf@windows:1@ub:2"], ["'@windows'", *known]),
            ([*base, "cb.gguf@ub:0"], ["'0'", "from 1"]),
            ([*base, "cb.gguf@window:9999999"], ["'9999999'", "to 1048576"]),
            ([*base, "cb.gguf@bytes:2"], ["'2'", "from 0 to 1"]),
            ([*base, "stock-fa"], ["'stock-fa'", "stock-nofa", "stock-ub:N"]),
            ([*base, "none@window:1"], ["none@window:1", "only a codebook"]),
        ])

    def test_missing_arguments(self):
        self.expect(run("calibrate"), 2, "cqkv calibrate: ", "required")
        self.expect(run("perplexity", "-m", self.model), 2, "cqkv perplexity: ", "required")
        self.expect(run("inspect"), 2, "required")

    def test_wrong_values(self):
        text = self.path("text.txt")
        base = ["calibrate", "-m", self.model, "-f", text, "-o", self.path("out.gguf")]
        self.expect(run(*base, "--config", "9c9b"), 2, "9c9b", "8c8b")
        self.expect(run(*base, "--config-k", "exact", "--config-v", "exact"), 2, "nothing to learn")
        self.expect(run(*base, "--config-k", "4c8b", "--config-v", "9c9b"), 2, "9c9b")
        self.expect(run(*base, "--weights", "heavy"), 2, "heavy", "uniform")
        self.expect(run(*base, "--no-bases"), 2, "--bits")
        self.expect(run(*base, "-t", "0"), 2)
        base = ["perplexity", "-m", self.model, "-f", text]
        self.expect(run(*base, "--score", "some"), 2, "some")
        self.expect(run(*base, "-c", "many"), 2, "many")
        self.expect(run(*base, "--kv-codebook", "stock-ub:x"), 2, "stock-ub:x")

    def test_several_configurations_used_wrongly(self):
        def calibrate(output, *flags):
            return run("calibrate", "-m", self.model, "-f", self.path("text.txt"), "-o",
                       self.path(output), *flags)
        self.expect(calibrate("one.gguf", "--config", "8c8b,4c8b"), 2, "2 configurations",
                    "one.gguf", "{config}")
        self.expect(calibrate("{config}.gguf", "--config", "8c8b,9c9b"), 2, "'9c9b'", "8c8b")
        self.expect(calibrate("{config}.gguf", "--config", "8c8b,4c8b,8c8b"), 2, "8c8b", "twice")
        self.expect(calibrate("{config}.gguf", "--config", "8c8b,4c8b", "--config-k", "8c8b",
                              "--config-v", "2c8b"), 2, "8c8b-2c8b", "twice")
        self.expect(calibrate("{config}.gguf", "--config", "8c8b,exact"), 2, "nothing to learn")
        for flag in ("--config", "--config-k", "--config-v"):
            self.expect(calibrate("one.gguf", "--bits", "1", flag, "8c8b"), 2, "--bits", flag)
        self.expect(calibrate("one.gguf", "--recipe", "ours"), 2, "'ours'", "rates or paper")
        self.expect(calibrate("one.gguf", "--recipe", "paper", "--kv", "1"), 2, "'paper'", "--bits")
        self.expect(calibrate("one.gguf", "--recipe", "rates", "--config", "8c8b"), 2, "'rates'",
                    "--config")
        self.assertEqual(sorted(os.listdir(self.folder.name)), ["codebook.gguf", "model.gguf"])
        # Each file is checked before the model is read.
        os.mkdir(self.path("4c8b.gguf"))
        self.expect(calibrate("{config}.gguf", "--config", "8c8b,4c8b"), 1, "4c8b.gguf",
                    "is a folder")

    def test_passthrough_only_where_it_goes_somewhere(self):
        self.expect(run("inspect", self.codebook, "--", "-n", "1"), 2, "--")

    # Failures: exit code 1

    def test_wrong_kinds_of_file(self):
        text = self.path("text.txt")
        with open(text, "w") as out:
            out.write("a text")
        folder, missing, out = self.folder.name, self.path("missing"), self.path("out.gguf")
        codebook = ["a codebook", "want the model"]
        self.expect_all(1, [
            (["calibrate", "-m", self.codebook, "-f", text, "-o", out], [self.codebook, *codebook]),
            (["perplexity", "-m", self.codebook, "-f", text], [self.codebook, *codebook]),
            (["run", "-m", self.codebook, "--kv-codebook", self.codebook], codebook),
            (["info", "-m", self.codebook, "--kv-codebook", self.codebook], codebook),
            (["bench", "model", "-m", self.codebook, "--kv-codebook", self.codebook], codebook),
            (["inspect", self.model], [self.model, "is a model, not a codebook"]),
            (["serve", "-m", self.model, "--kv-codebook", self.model], ["is a model, not"]),
            (["calibrate", "-m", self.model, "-f", folder, "-o", out], [folder, "is a folder"]),
            (["perplexity", "-m", self.model, "-f", folder], [folder, "is a folder"]),
            (["calibrate", "-m", self.model, "-f", text, missing, "-o", out],
             [missing, "No such file"]),
            (["perplexity", "-m", self.model, "-f", missing], [missing, "No such file"]),
            (["calibrate", "-m", folder, "-f", text, "-o", out], [folder, "folder"]),
            (["perplexity", "-m", folder, "-f", text], [folder, "folder"]),
        ])
        self.assertFalse(os.path.exists(out))

    # A file that cannot be written is found before the work, which without a model would fail first.
    def test_figures_that_cannot_be_written(self):
        for figures, words in ((self.path("none/x.json"), ["No such file"]),
                               (self.folder.name, ["is a folder"]), ("/dev/null", ["a device"])):
            text = ["-f", self.model, "--json", figures]
            self.expect_all(1, [(line, [figures, *words]) for line in (
                ["perplexity", "-m", self.path("missing"), *text],
                ["bench", "attention", "--json", figures],
                ["bench", "encode", "--json", figures],
                ["bench", "model", "-m", self.path("missing"), "--kv-codebook", "x", "--json",
                 figures])])
        self.assertEqual(sorted(os.listdir(self.folder.name)), ["codebook.gguf", "model.gguf"])

    def test_results_that_do_not_arrive(self):
        for line in (["inspect", self.codebook], ["inspect", "--json", self.codebook], ["info"],
                     ["info", "--json"], ["--version"], ["--help"], ["inspect", "--help"],
                     ["run", "-m", self.model, "--kv-codebook", self.codebook, "--print-command"],
                     ["bench", "encode", "--seconds", "0", "--codec", "8c8b", "--rows", "1"],
                     ["bench", "encode", "--seconds", "0", "--codec", "8c8b", "--json", "-"],
                     ["bench", "attention", "--seconds", "0", "--tokens", "64", "-t", "1"]):
            with self.subTest(line=line), open("/dev/full", "w") as full:
                result = subprocess.run([CQKV, *line], stdout=full, stderr=subprocess.PIPE,
                                        text=True, timeout=120)
                self.assertEqual(result.returncode, 1, line)
                self.assertIn("standard output: cannot write", result.stderr)

    def test_wrong_files(self):
        missing = self.path("missing.gguf")
        text = self.path("text.txt")
        self.expect(run("inspect", missing), 1, "cqkv inspect: ", missing, "No such file")
        self.expect(run("inspect", self.folder.name), 1, "folder")
        self.expect(run("inspect", self.model), 1, "kv_codebook")
        with open(text, "w") as out:
            out.write("a text")
        self.expect(run("perplexity", "-m", missing, "-f", text), 1, missing)
        self.expect(run("perplexity", "-m", self.codebook, "-f", text), 1, "kv_codebook", "model")
        self.expect(run("run", "-m", missing, "--kv-codebook", self.codebook), 1, missing)
        self.expect(run("run", "-m", self.model, "--kv-codebook", missing), 1, missing)

    def test_truncated_codebook(self):
        with open(self.codebook, "rb") as whole:
            data = whole.read()
        for n_bytes in (0, 10, 100, len(data) // 2, len(data) - 1):
            with open(self.path("cut.gguf"), "wb") as cut:
                cut.write(data[:n_bytes])
            self.expect(run("inspect", self.path("cut.gguf")), 1, "cut.gguf")

    def test_codebook_of_another_model_names_both(self):
        for n_layers, architecture in ((2, "qwen2"), (3, "llama")):
            other = self.path("other.gguf")
            self.make_codebook(other, n_layers=n_layers, architecture=architecture)
            for command in (["run"], ["serve"], ["perplexity", "-f", self.model]):
                self.expect(run(*command, "-m", self.model, "--kv-codebook", other), 1,
                            "'a model'", "'Tiny'", "cqkv calibrate")

    def test_output_that_cannot_be_written_is_found_at_once(self):
        base = ["calibrate", "-m", self.model, "-f", self.model]
        self.expect(run(*base, "-o", self.path("none/out.gguf")), 1, "none/out.gguf", "No such file")
        self.expect(run(*base, "-o", self.folder.name), 1, "is a folder")
        self.expect(run(*base, "-o", "/dev/null"), 1, "is a device")
        self.assertEqual(sorted(os.listdir(self.folder.name)), ["codebook.gguf", "model.gguf"])

    def test_unusable_instruction_set_is_an_error(self):
        self.expect(run("info", env={"CQKV_FORCE_ISA": "abacus"}), 1, "abacus", "scalar")

    # inspect and info

    def test_inspect(self):
        result = run("inspect", self.codebook)
        self.assertEqual(result.returncode, 0, result.stderr)
        for word in ("4c4b", "a model", "uniform", "one.txt", "0-1", "1.0000",
                     "keys 12.5 %, values 37.5 %", "2048 tokens"):
            self.assertIn(word, result.stdout)

    def test_inspect_json(self):
        result = run("inspect", "--json", self.codebook)
        self.assertEqual(result.returncode, 0, result.stderr)
        data = json.loads(result.stdout)
        self.assertEqual(len(data["layers"]), 2)
        self.assertEqual(data["layers"][0]["k"]["config"], "4c4b")
        self.assertEqual(data["layers"][1]["v"]["n_kv_heads"], 2)
        self.assertEqual(data["bits_per_channel"], 1.0)
        self.assertEqual(data["centroid_bytes"], 2 * 2 * 2 * 16 * 16 * 2)
        self.assertEqual(data["held_out"], {"n_tokens": 2048, "k_loss": 0.125, "v_loss": 0.375})
        self.assertRegex(data["identity"], "^[0-9a-f]{16}$")

    def test_info(self):
        result = run("info", "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        data = json.loads(result.stdout)
        self.assertTrue(data["device_loads"], data)
        self.assertEqual(data["devices"][0]["name"], "CQ0")
        self.assertEqual(data["instruction_sets_supported"][-1], "scalar")
        self.assertIn(data["instruction_set"], data["instruction_sets_supported"])
        for key in ("cqkv", "ggml", "libllama"):
            self.assertRegex(data[key], r"^\d+\.\d+")

    def test_info_says_why_the_device_does_not_load(self):
        result = run("info", "--json", env={"CQKV_DEVICE": self.model})
        self.assertEqual(result.returncode, 0)
        data = json.loads(result.stdout)
        self.assertFalse(data["device_loads"])
        self.assertIn(self.model, data["device_error"])

    def test_info_tells_bits_bytes_and_tokens(self):
        result = run("info", "--json", "-m", self.model, "--kv-codebook", self.codebook, "-c",
                     "1000", "-np", "3", "--window", "10", "--sinks", "2")
        self.assertEqual(result.returncode, 0, result.stderr)
        cache = json.loads(result.stdout)["cache"]
        self.assertEqual((cache["tokens"], cache["sequences"]), (1024, 3))
        self.assertEqual((cache["window"], cache["sinks"]), (10, 2))
        parts = ("code_bytes", "exact_bytes", "window_bytes", "position_bytes")
        self.assertEqual(cache["cache_bytes"], sum(cache[part] for part in parts))
        self.assertGreater(cache["window_bytes"], 0)
        self.assertLess(cache["cache_bytes"], cache["cache_bytes_f16"])
        people = run("info", "-m", self.model, "--kv-codebook", self.codebook)
        self.assertIn("4096 tokens", people.stdout)
        self.expect(run("info", "-m", self.model), 2, "--kv-codebook")

    # run and serve

    def start(self, command, *passthrough, env=None):
        return run(command, "-m", self.model, "--kv-codebook", self.codebook, "--print-command",
                   "--", *passthrough, env=env)

    # The codebook, where none is named

    def find(self, *flags, model=None):
        return run("find", "-m", model or self.model, *flags,
                   env={"CQKV_CACHE_DIR": self.path("cache")})

    def test_without_a_codebook_the_places_are_named(self):
        for command in ("find", "run", "serve"):
            result = run(command, "-m", self.model, env={"CQKV_CACHE_DIR": self.path("cache")})
            self.expect(result, 3 if command == "find" else 1,
                        f"cqkv {command}: no codebook of 1.00 bits a channel",
                        f"*.cq-*.gguf in {self.folder.name}", self.path("cache/codebooks"),
                        "--learn", "--kv-codebook")
        self.expect(self.find(model=self.path("nowhere.gguf")), 1, "nowhere.gguf")

    def test_the_codebook_beside_the_model(self):
        beside, half = self.path("model.cq-one.gguf"), self.path("model.cq-half.gguf")
        self.make_codebook(beside)
        self.make_codebook(half, config="8c4b")
        self.make_codebook(self.path("another.cq-one.gguf"))
        result = self.find()
        self.assertEqual((result.returncode, result.stdout), (0, beside + "\n"))
        self.assertIn(f"using {beside} (1.00 bits a channel)", result.stderr)
        self.assertEqual(self.find("--kv", "0.5").stdout, half + "\n")
        self.expect(self.find("--kv", "2"), 3, "2.00 bits", f"{beside} of 1.00", "(--kv 1)",
                    f"{half} of 0.50", "(--kv 0.5)")
        result = run("serve", "-m", self.model, "--kv", "0.5", "--print-command")
        self.assertIn(f"CQKV_CODEBOOK='{half}'", result.stdout)
        self.assertNotIn("using", result.stdout)

    def test_what_does_not_fit_is_not_taken(self):
        wide, broken = self.path("model.cq-wide.gguf"), self.path("model.cq-broken.gguf")
        self.make_codebook(wide, n_kv_heads=4)
        with open(broken, "wb") as out:
            out.write(b"GGUF")
        self.expect(self.find(), 3, "no codebook", f"skipping a codebook: codebook {wide}",
                    f"skipping a codebook: {broken}")

    # Of an unknown model, and away from its file: the shape alone is no proof.
    def test_shapes_alone_do_not_count_elsewhere(self):
        os.makedirs(self.path("cache/codebooks"))
        self.make_codebook(self.path("cache/codebooks/any.gguf"))
        self.make_codebook(self.path("other.cq-one.gguf"))
        self.expect(self.find(), 3, "no codebook")

    # A program's folder may have a neighbour of this name that has nothing to do with it.
    def test_a_folder_named_data(self):
        os.makedirs(self.path("bin"))
        os.makedirs(self.path("data"))
        program = self.path("bin/cqkv")
        shutil.copy(CQKV, program)
        result = subprocess.run([program, "calibrate", "-m", self.model, "-o", self.path("o.gguf")],
                                capture_output=True, text=True)
        self.assertIn("libllama cannot load its vocabulary", result.stderr)

    def test_a_model_in_this_folder(self):
        self.make_codebook(self.path("model.cq-one.gguf"))
        result = subprocess.run([CQKV, "find", "-m", "model.gguf"], capture_output=True, text=True,
                                cwd=self.folder.name)
        self.assertEqual(result.stdout, "./model.cq-one.gguf\n")

    def test_flags_of_the_search(self):
        for flags in (("--kv", "1"), ("--learn",)):
            self.expect(run("run", "-m", self.model, "--kv-codebook", self.codebook, *flags), 2,
                        flags[0])
        self.expect(self.find("--kv", "17"), 2, "17")

    # This model has no weights to learn from.
    def test_learning_that_fails(self):
        self.expect(self.find("--learn"), 1, "cqkv calibrate: ", "did not end well")
        self.assertEqual(os.listdir(self.path("cache/codebooks")), [])

    def test_calibrate_writes_beside_the_model_and_replaces_nothing(self):
        output = self.path("model.cq-1.00b.gguf")
        result = run("calibrate", "-m", self.model)
        self.expect(result, 1, "libllama cannot load its vocabulary")
        self.make_codebook(output)
        self.expect(run("calibrate", "-m", self.model), 1, f"{output} exists", "-o")
        self.expect(run("calibrate", "-m", self.path("nowhere/model.gguf")), 1,
                    self.path("nowhere/model.gguf") + ": ")

    def test_what_run_and_serve_start(self):
        for command, program in (("run", "llama-completion"), ("serve", "llama-server")):
            result = self.start(command, "-n", "5", "-p", "two words")
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn(f"/{program}' '-m' '{self.model}' '-dev' 'CQ0' '-ngl' '99' '-fa' 'on' "
                          "'-n' '5' '-p' 'two words'", result.stdout)
            self.assertIn(f"CQKV_CODEBOOK='{self.codebook}'", result.stdout)
            self.assertIn("libggml-cq.so'", result.stdout)
        result = run("run", "-m", self.model, "--kv-codebook", self.codebook, "--chat",
                     "--print-command")
        self.assertIn("/llama-cli'", result.stdout)

    def test_window_and_number_of_sequences_reach_the_device(self):
        result = self.start("serve")
        self.assertNotIn("CQKV_WINDOW", result.stdout, "the codebook's own")
        self.assertIn("CQKV_SEQUENCES='4'", result.stdout, "llama-server's default slots")
        self.assertIn("CQKV_SEQUENCES='1'", self.start("run").stdout)
        self.assertIn("CQKV_SEQUENCES='8'", self.start("serve", "-np", "8").stdout)
        self.assertIn("CQKV_SEQUENCES='4'", self.start("serve", "-np", "-1").stdout)
        self.assertIn("CQKV_SEQUENCES='6'",
                      self.start("serve", env={"LLAMA_ARG_N_PARALLEL": "6"}).stdout)
        self.assertIn("CQKV_SEQUENCES='9'", self.start("serve", env={"CQKV_SEQUENCES": "9"}).stdout)
        result = run("serve", "-m", self.model, "--kv-codebook", self.codebook, "--window", "64",
                     "--sinks", "0", "--print-command")
        self.assertIn("CQKV_WINDOW='64' CQKV_SINKS='0'", result.stdout)
        self.expect(run("serve", "-m", self.model, "--kv-codebook", self.codebook, "--window",
                        "-3", "--print-command"), 2, "--window")

    def test_flags_that_would_switch_coding_off(self):
        conflicts = [("-fa", "off"), ("--flash-attn", "0"), ("-nkvo",), ("--no-kv-offload",),
                     ("-ctk", "q8_0"), ("--cache-type-k", "q4_0"), ("-ctv", "bf16"),
                     ("--cache-type-v", "f32"), ("-dev", "none"), ("--device", "CUDA0"),
                     ("-ngl", "0"), ("--n-gpu-layers", "3"), ("-m", "x")]
        for conflict in conflicts:
            for command in ("run", "serve"):
                self.expect(self.start(command, "-n", "1", *conflict), 2, conflict[0],
                            "conflicting", "after '--'")

    def test_harmless_flags_pass(self):
        for flags in (("-fa", "on"), ("-ctk", "f16"), ("-ctv", "f16"), ("-dev", "CQ0"),
                      ("-ngl", "99"), ("-kvo",), ("-fit", "off"), ("-fit", "on")):
            self.assertEqual(self.start("run", *flags).returncode, 0, flags)

    def test_variables_that_would_switch_coding_off(self):
        for name, value in (("LLAMA_ARG_CACHE_TYPE_K", "q8_0"), ("LLAMA_ARG_NO_KV_OFFLOAD", "1"),
                            ("LLAMA_ARG_FLASH_ATTN", "off")):
            self.expect(self.start("run", env={name: value}), 1, name, value)
        self.assertEqual(self.start("run", env={"LLAMA_ARG_CACHE_TYPE_K": "f16"}).returncode, 0)

    def test_colon_in_a_codebook_path(self):
        odd = self.path("a:b.gguf")
        os.rename(self.codebook, odd)
        self.expect(run("run", "-m", self.model, "--kv-codebook", odd, "--print-command"), 1, odd)


if __name__ == "__main__":
    sys.exit(unittest.main())
