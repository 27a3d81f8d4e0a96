"""``km explain usage``: a recorded call is priced with the gate's own meters."""

from __future__ import annotations

import json

from km_core.cli.main import main


def test_a_price_that_is_a_guess_says_so_and_what_would_make_it_exact(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("KM_HOME", str(tmp_path))
    answer, request = tmp_path / "answer.json", tmp_path / "request.json"
    answer.write_text(json.dumps({"type": "message", "usage": {"input_tokens": 12, "output_tokens": 3}}))
    request.write_text(json.dumps({"model": "claude-sonnet-4-5", "max_tokens": 100, "messages": []}))
    call = ["explain", "usage", "--host", "api.anthropic.com", "--path", "/v1/messages"]

    assert 0 == main([*call, "--response", str(answer)])
    captured = capsys.readouterr()
    assert captured.err.startswith("warning: the request, which names the model, is not given")
    assert captured.err.endswith(", so the dearest known rate counts: add --request\n")
    assert "12 in, 3 out" in captured.out

    assert 0 == main([*call, "--response", str(answer), "--request", str(request)])
    captured = capsys.readouterr()
    assert ("", True) == (captured.err, captured.out.startswith("anthropic claude-sonnet-4-5: 12 in, 3 out"))
