"""Reading Markdown as the truth tests do: code blocks, links, headings, command lines."""

from __future__ import annotations

import re

from attrs import frozen

_FENCE = re.compile(
    r"^(?P<fence>```+|~~~+)(?P<info>[^\n]*)\n(?P<body>.*?)^(?P=fence)[ \t]*$", re.MULTILINE | re.DOTALL
)
_LINK = re.compile(r"(?<!!)\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
_FILE = re.compile(r"\bSave [^\n`]*`([^`\n]+)`[^\n]*:\n\n```[a-z]+\n(.*?)^```", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^(#{1,6}) +(.+?) *$", re.MULTILINE)


@frozen
class Shown:
    """A command of a ``console`` block with the output that is shown below it."""

    command: str
    output: str


def without_code(text: str) -> str:
    """Return the page without its code blocks."""
    return _FENCE.sub("", text)


def code(text: str, *languages: str) -> list[str]:
    """Return the bodies of the code blocks in one of *languages*."""
    return [match["body"] for match in _FENCE.finditer(text) if match["info"].strip() in languages]


def files(text: str) -> dict[str, str]:
    """Return the files that the page has its reader make: "Save this as `NAME`:" and a code block."""
    return dict(_FILE.findall(text))


def links(text: str) -> list[str]:
    """Return the targets of the page's links."""
    return _LINK.findall(re.sub(r"`[^`\n]+`", "", without_code(text)))


def headings(text: str) -> list[tuple[int, str]]:
    """Return level and text of each heading."""
    return [(len(marks), title) for marks, title in _HEADING.findall(without_code(text))]


def anchors(text: str) -> set[str]:
    """Return the anchors of the page's headings, spelt as code forges and MyST do."""
    found: set[str] = set()
    for _, title in headings(text):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        number = 0
        while (name := slug if number == 0 else f"{slug}-{number}") in found:
            number += 1
        found.add(name)
    return found


def sessions(text: str) -> list[list[Shown]]:
    """Return the ``console`` blocks: each ``$ command`` with the lines up to the next."""
    result = []
    for body in code(text, "console"):
        session: list[Shown] = []
        for piece in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
            command, _, output = piece.partition("\n")
            session.append(Shown(command.strip(), output.strip("\n")))
        result.append(session)
    return result


def command_lines(text: str) -> list[str]:
    """Return the ``km`` commands of the shell blocks, one by one, pipes and lists taken apart."""
    lines = [line for body in code(text, "sh", "bash") for line in body.replace("\\\n", " ").splitlines()]
    lines += [shown.command for session in sessions(text) for shown in session]
    parts = [part.strip() for line in lines for part in re.split(r"&&|\|\||(?<!\|)\|(?!\|)|;|\$\(", line)]
    return [part for part in parts if re.match(r"km(\s|$)", part)]
