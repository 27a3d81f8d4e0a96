"""Answers that are gathered whole: bounded each and together."""

from __future__ import annotations

import json

import pytest

from km_net_proxy.meter import whole
from km_net_proxy.meter.whole import WholeBody


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(whole, "MAX_BODY", 100)
    monkeypatch.setattr(whole, "MAX_GATHERED", 250)


def test_a_body_in_any_pieces_is_read_and_gives_its_room_back():
    text = json.dumps({"usage": {"output_tokens": 7}}).encode()
    for size in range(1, len(text)):
        body = WholeBody()
        for at in range(0, len(text), size):
            body.feed(text[at : at + size])
        assert body.value() == {"usage": {"output_tokens": 7}}
    assert WholeBody._gathered == 0


def test_a_body_that_is_too_large_is_let_go_at_once():
    body = WholeBody()
    body.feed(b"x" * 100)
    body.feed(b"x")

    assert body.overflow
    assert WholeBody._gathered == 0
    assert body.value() is None


def test_all_bodies_together_have_a_bound_and_one_that_ends_makes_room():
    held = [WholeBody(), WholeBody()]
    for body in held:
        body.feed(b"x" * 100)
    refused = WholeBody()
    refused.feed(b"x" * 51)
    assert refused.overflow

    del held[0], body  # cut by its client: nobody asks for its value
    later = WholeBody()
    later.feed(b"x" * 100)
    assert not later.overflow

    del later, held
    assert WholeBody._gathered == 0
