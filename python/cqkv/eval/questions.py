"""Questions about what stands far back in a text, drawn by a random.Random: what cqkv.eval's tasks
and scripts/retrieval.py ask. How long they are to be is theirs. Python's standard library only."""

_LETTERS = ("bcdfghjklmnpqrstvwxz", "aeiou")


def sentences(text):
    """Those of a text in WikiText's form, neither very short nor very long."""
    return [part.strip() + "." for part in text.replace("\n", " ").split(" . ")
            if 20 < len(part) < 300]


def pass_key(rng, draw_lines):
    """A number said once among the lines of draw_lines(rng); returns prompt and answer."""
    key = str(rng.randrange(10000, 100000))
    lines = draw_lines(rng)
    lines.insert(rng.randrange(len(lines) // 20, 9 * len(lines) // 10),
                 f"The pass key is {key}. Remember it. {key} is the pass key.")
    text = " ".join(lines)
    return f"{text}\n\nWhat is the pass key? The pass key is", key


def table(rng, n_lines):
    """One of many lines "key: value"; returns prompt and answer."""
    keys = set()
    while len(keys) < n_lines:
        keys.add("".join(rng.choice(_LETTERS[i % 2]) for i in range(6)))
    rows = [(key, str(rng.randrange(10000, 100000))) for key in sorted(keys)]
    rng.shuffle(rows)
    key, value = rows[rng.randrange(len(rows) // 20, 9 * len(rows) // 10)]
    lines = "\n".join(f"{name}: {number}" for name, number in rows)
    return f"A table of names and numbers.\n{lines}\n\nOnce more, one of these lines:\n{key}:", value
