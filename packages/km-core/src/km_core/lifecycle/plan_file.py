"""
The stored plan of a sandbox, and its change while the sandbox lives.

The record's digest says which plan counts.  A new one is written beside the old one first, then the record
names it, then it takes the old one's place: a crash at any point leaves the plan that the record names.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import TYPE_CHECKING

from km_core.errors import GuardError, PlanError
from km_core.lifecycle.files import write_private
from km_core.plan import SandboxPlan

if TYPE_CHECKING:
    from pathlib import Path

PLAN, PROFILE = "plan.json", "profile.yaml"
_NEXT = {PLAN: "plan.next.json", PROFILE: "profile.next.yaml"}
DAMAGED = "destroy the sandbox and create it again"


def read_plan(state_dir: Path, digest: str) -> SandboxPlan:
    """
    Return the plan that a record names by *digest*; one that waits beside is put into its place.

    Args:
        state_dir: of the sandbox.
        digest: of the record; empty takes whatever is stored.

    Raises:
        PlanError: there is none, or it cannot be read.
        GuardError: what is stored is not the plan of this digest.
    """
    path = state_dir / PLAN
    following = state_dir / _NEXT[PLAN]
    waits = bool(digest) and following.exists()
    try:
        plan: SandboxPlan | None = _load(path)
    except PlanError:
        if not waits:
            raise
        plan = None
    if plan is not None and (not digest or plan.digest() == digest):
        return plan
    if waits:
        following_plan = _load(following)
        if following_plan.digest() == digest:
            take_next(state_dir, following_plan)
            return following_plan
    raise GuardError(
        "the stored plan is not the one the sandbox was made with", where=str(path), hint=DAMAGED
    )


def write_next(state_dir: Path, plan: SandboxPlan, profile_text: str) -> None:
    """Put a plan and its profile beside those that count, on the disk when this returns."""
    write_private(state_dir / _NEXT[PROFILE], profile_text)
    write_private(state_dir / _NEXT[PLAN], plan.to_json())


def take_next(state_dir: Path, plan: SandboxPlan) -> None:
    """
    Let the waiting plan, which the record names by now, take the place of the one before.

    The profile goes first: as long as the plan waits, a crash in between is made good by the next reader.
    """
    waiting = state_dir / _NEXT[PROFILE]
    with contextlib.suppress(FileNotFoundError):
        if hashlib.sha256(waiting.read_bytes()).hexdigest() == plan.profile_digest:
            waiting.replace(state_dir / PROFILE)
    with contextlib.suppress(FileNotFoundError):
        (state_dir / _NEXT[PLAN]).replace(state_dir / PLAN)


def _load(path: Path) -> SandboxPlan:
    try:
        return SandboxPlan.from_data(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise PlanError("the stored plan cannot be read", where=str(path), why=str(error)) from error
    except PlanError as error:
        raise PlanError(error.what, where=str(path), why=error.why, hint=DAMAGED) from error
