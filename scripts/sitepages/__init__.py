"""
The pages of the documentation site that are read from the code itself.

``python -m sitepages DIRECTORY`` (with ``scripts`` on the path) assembles the site's sources: what stands in
``docs/``, the pages that live elsewhere in the repository, and a page for each hook and command.
Needs km's distributions and nothing else, so that the truth tests can ask it without Sphinx.
"""

from __future__ import annotations
