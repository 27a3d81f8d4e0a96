"""Tokens of a time expression and the cursor that rules move over them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeVar

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

_T = TypeVar("_T")

_DIGITS = frozenset("0123456789")
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz")


@frozen
class Token:
    """
    A run of digits, a run of letters (lower case), or one other character.

    Attributes:
        gap: a blank, a comma or the beginning of the text is before it.
    """

    kind: Literal["number", "word", "symbol"]
    text: str
    gap: bool


def tokenize(text: str) -> tuple[Token, ...]:
    """
    Split *text*; takes any text.

    Only ASCII letters and digits make words and numbers: what else looks like them is a symbol, which no
    rule knows.  Blanks of all kinds and commas only separate.
    """
    tokens: list[Token] = []
    gap = True
    position = 0
    while position < len(text):
        character = text[position]
        if character == "," or character.isspace():
            gap = True
            position += 1
            continue
        kind: Literal["number", "word", "symbol"] = "symbol"
        end = position + 1
        if character in _DIGITS:
            kind = "number"
            while end < len(text) and text[end] in _DIGITS:
                end += 1
        elif _small(character) in _LETTERS:
            kind = "word"
            while end < len(text) and _small(text[end]) in _LETTERS:
                end += 1
        run = text[position:end]
        tokens.append(Token(kind, run.lower() if kind == "word" else run, gap))
        gap = False
        position = end
    return tuple(tokens)


def _small(character: str) -> str:
    # Not lower() alone: the Kelvin sign would become a k.
    return character.lower() if character.isascii() else character


class Cursor:
    """
    A place among tokens.

    Each method takes what it names and returns it, or returns None and stays.  A rule that fails half way
    is undone by `attempt`, so a rule is a sequence of ``and``.
    """

    def __init__(self, tokens: tuple[Token, ...]) -> None:
        self._tokens = tokens
        self._position = 0
        self.furthest = 0

    def attempt(self, rule: Callable[[Cursor], _T]) -> _T:
        """Return what *rule* makes of the tokens from here; where it makes nothing, stay here."""
        start = self._position
        result = rule(self)
        if result is None:
            self._position = start
        return result

    def whole(self, rule: Callable[[Cursor], _T]) -> _T | None:
        """As `attempt`, for a rule that must take everything that is left."""

        def to_the_end(cursor: Cursor) -> _T | None:
            result = rule(cursor)
            return result if result is not None and cursor.done else None

        return self.attempt(to_the_end)

    @property
    def done(self) -> bool:
        """Nothing is left."""
        return self._position == len(self._tokens)

    def word(self, *options: str, glued: bool = False) -> str | None:
        """Take one of *options*, after a blank; *glued* where a blank may lack."""
        return self.word_of(options, glued=glued)

    def word_of(self, options: Collection[str], *, glued: bool = False) -> str | None:
        """Take a word that is in *options*."""
        token = self._peek("word")
        if token is None or token.text not in options or not (token.gap or glued):
            return None
        return self._take(token)

    def phrase(self, *words: str) -> bool:
        """Take all of *words*, one after the other, or nothing."""
        return bool(self.attempt(lambda cursor: all(cursor.word(word) for word in words) or None))

    def number(self, *, glued: bool = False) -> str | None:
        """Take a run of digits, after a blank; *glued* where none may be."""
        token = self._peek("number")
        if token is None or token.gap == glued:
            return None
        return self._take(token)

    def symbol(self, character: str, *, glued: bool = True) -> str | None:
        """Take *character*, with no blank before it; not *glued* where one must be."""
        token = self._peek("symbol")
        if token is None or token.text != character or token.gap == glued:
            return None
        return self._take(token)

    def tight(self, *options: str) -> str | None:
        """Take one of *options* that follows without a blank."""
        token = self._peek("word")
        if token is None or token.gap or token.text not in options:
            return None
        return self._take(token)

    def stopper(self) -> Token | None:
        """Return the token that no rule got past; None when every token was taken by some rule."""
        return self._tokens[self.furthest] if self.furthest < len(self._tokens) else None

    def _peek(self, kind: str) -> Token | None:
        if self.done:
            return None
        token = self._tokens[self._position]
        return token if token.kind == kind else None

    def _take(self, token: Token) -> str:
        self._position += 1
        self.furthest = max(self.furthest, self._position)
        return token.text
