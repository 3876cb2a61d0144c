"""Writes the demo's prompt: a passage, other text, and the passage's beginning again.

    demo_prompt.py TEXT PROMPT

A model that looks back far enough goes on with the passage; what should come is printed."""

import sys

PASSAGE = 1200  # characters, some 300 tokens: the passage is outside of the exact window
BEGINNING = 80
SHOWN = 200


def sentences(text, start, size):
    """About `size` characters from the first line of prose behind `start`, whole words."""
    while True:
        end = text.index("\n", start)
        line = text[start:end].strip()
        if len(line) > size and not line.startswith("="):
            return line[:line.rindex(" ", 0, size)], end + 1
        start = end + 1


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        text = file.read()
    passage, end = sentences(text, 0, PASSAGE)
    other, _ = sentences(text, end, PASSAGE)
    beginning = passage[:passage.rindex(" ", 0, BEGINNING)]
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        file.write(f"{passage}\n\n{other}\n\n{beginning}")
    rest = passage[len(beginning):]
    print(f"the passage goes on:   {rest[:rest.rindex(' ', 0, SHOWN)]}")


if __name__ == "__main__":
    main()
