"""The git filter: requests to GitHub judged by repository and ref before anything leaves."""

from __future__ import annotations
