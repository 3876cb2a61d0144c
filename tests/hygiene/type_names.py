"""Finds types that are defined twice under one name: two classes called cqkv::Shape in two headers
may be linked into one program, where only one of them is right (the one-definition rule), and a
reader cannot tell which one is meant.

    type_names.py FOLDER...

Looks at every struct, class, union, enum and alias in the namespaces of all *.h and *.cpp files of
the folders; types inside anonymous namespaces, classes and functions are their own matter.
Names each name defined more than once with its places, and fails.

This is no compiler: it follows braces, namespaces and definitions, which is enough for our style.
"""

import collections
import pathlib
import re
import sys

SUFFIXES = (".h", ".cpp")
# Comments, strings and lines of the preprocessor say nothing; newlines stay, for line numbers.
SILENT = re.compile(r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"'
                    r"|(?<![0-9A-Za-z_])'(?:\\.|[^'\\\n])+'|^[ \t]*#(?:\\\n|[^\n])*", re.S | re.M)
TOKEN = re.compile(r"\w+|::|[^\w\s]")


def tokens_of(text):
    """(token, line) of what is neither comment nor string."""
    text = SILENT.sub(lambda match: " " + "\n" * match.group().count("\n"), text)
    line, at = 1, 0
    for match in TOKEN.finditer(text):
        line += text.count("\n", at, match.start())
        at = match.start()
        yield match.group(), line


def namespace_of(head):
    """The name that `head {` opens as a namespace, "" for an anonymous one, None for others."""
    if head[:1] == ["inline"]:
        head = head[1:]
    return "".join(head[1:]) if head[:1] == ["namespace"] else None


def type_of(head):
    """The name of the type that `head {` or `head =` defines, or None."""
    if head[:1] == ["template"]:  # its parameters end at the last '>' before the keyword
        depth = 0
        for i, token in enumerate(head[1:], 1):
            depth += {"<": 1, ">": -1}.get(token, 0)
            if depth == 0:
                return type_of(head[i + 1:])
    if head[:1] == ["typedef"]:
        head = head[1:]
    if head[:1] == ["using"]:
        return head[1] if len(head) == 2 else None
    if not head or head[0] not in ("struct", "class", "union", "enum"):
        return None
    rest = [token for token in head[1:] if token not in ("struct", "class")]
    while rest[:1] == ["["] or rest[:1] == ["alignas"]:  # attributes
        close = "]" if rest[0] == "[" else ")"
        last = rest.index(close)
        rest = rest[last + (2 if close == "]" else 1):]
    name = rest[0] if rest and re.match(r"[A-Za-z_]\w*$", rest[0]) else None
    follows = rest[1:2]
    # "struct X<int> {" specializes, "struct X f() {" returns one.
    return name if follows in ([], [":"], ["final"]) else None


def definitions(text):
    """(qualified name, line) of every type at namespace scope outside anonymous namespaces."""
    scopes = []  # what the open braces are: namespaces by name, see namespace_of
    head = []  # since the last brace or semicolon
    for token, line in tokens_of(text):
        name = type_of(head) if token in ("{", "=") and all(scopes) else None
        if name is not None:
            yield "::".join([*scopes, name]), line
        if token == "{":
            scopes.append(namespace_of(head))
        elif token == "}" and scopes:
            scopes.pop()
        head = [] if token in ("{", "}", ";") else [*head, token]


def places_by_name(folders):
    """Where each type is defined."""
    places = collections.defaultdict(list)
    for folder in folders:
        for path in sorted(pathlib.Path(folder).rglob("*")):
            if path.suffix in SUFFIXES:
                for name, line in definitions(path.read_text(encoding="utf-8")):
                    places[name].append(f"{path}:{line}")
    return places


def main(folders):
    places = places_by_name(folders)
    if not places:
        print(f"no types found in {' '.join(folders) or '(no folder)'}")
        return 1
    twice = {name: where for name, where in sorted(places.items()) if len(where) > 1}
    for name, where in twice.items():
        print(f"{name} is defined {len(where)} times, rename all but one:")
        print("".join(f"  {place}\n" for place in where), end="")
    return 1 if twice else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
