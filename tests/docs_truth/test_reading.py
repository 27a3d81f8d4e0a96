"""The truth tests read pages as people do: these are the tests of that reading."""

from __future__ import annotations

from sitepages import commands, reading, tree

PAGE = """# A page

Save this as `a.yaml`:

```yaml
kind: SandboxProfile
```

See [one](one.md#part), ![not a link](x.png) and `[code](no.md)`.

```console
$ km validate a.yaml
a.yaml: valid
$ km list && km status x | grep y
```

```sh
km create a.yaml \\
  --alias b
echo no; km stop b
```

```text
[not](seen.md)
```

## A page
"""


def test_sessions_keep_each_command_with_its_output() -> None:
    assert reading.sessions(PAGE) == [
        [
            reading.Shown("km validate a.yaml", "a.yaml: valid"),
            reading.Shown("km list && km status x | grep y", ""),
        ]
    ]


def test_command_lines_are_taken_out_of_lists_and_pipes() -> None:
    assert sorted(reading.command_lines(PAGE)) == [
        "km create a.yaml    --alias b",
        "km list",
        "km status x",
        "km stop b",
        "km validate a.yaml",
    ]


def test_links_in_code_blocks_and_images_are_not_links() -> None:
    assert "seen.md" not in reading.links(PAGE)
    assert "x.png" not in reading.links(PAGE)
    assert "one.md#part" in reading.links(PAGE)


def test_files_are_those_that_the_reader_is_told_to_save() -> None:
    assert reading.files(PAGE) == {"a.yaml": "kind: SandboxProfile\n"}


def test_headings_that_are_the_same_get_anchors_of_their_own() -> None:
    assert reading.anchors(PAGE) == {"a-page", "a-page-1"}


def test_every_page_of_the_repository_has_one_place_in_the_site() -> None:
    own = [place for source, place in tree.written().items() if source != "README.md"]
    places = [*own, *tree.generated()]

    assert sorted(places) == sorted(set(places))


def test_no_link_of_the_assembled_site_leaves_it() -> None:
    pages = tree.sources()
    wrong = []
    for path, text in pages.items():
        for link in reading.links(text):
            target = link.partition("#")[0]
            if target and "://" not in link and tree.resolve(path, target) not in pages:
                wrong.append((path, link))

    assert wrong == []


def test_commands_of_plugins_are_found_like_those_of_core() -> None:
    names = {entry.name for entry in commands.entries()}

    assert {"km validate", "km plugins list", "km budget add"} <= names
    assert not any("_internal" in name for name in names)
