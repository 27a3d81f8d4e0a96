"""The database: migrations, refusals, transactions."""

from __future__ import annotations

import sqlite3

import pytest

from km_core.errors import ControlError
from km_embedded.files import make_key, private_dir, read_key
from km_embedded.store import Database
from km_embedded.store.schema import MIGRATIONS


def test_a_new_database_has_the_newest_schema_and_is_private(tmp_path):
    db = Database(tmp_path / "km.db")
    assert db.one("PRAGMA user_version")[0] == len(MIGRATIONS)
    assert db.one("PRAGMA journal_mode")[0] == "wal"
    assert db.one("PRAGMA foreign_keys")[0] == 1
    assert (tmp_path / "km.db").stat().st_mode & 0o777 == 0o600
    db.close()


def test_migrations_are_applied_once_and_in_order(tmp_path):
    path = tmp_path / "km.db"
    later = (*MIGRATIONS, ("CREATE TABLE extra (a INTEGER) STRICT", "INSERT INTO extra VALUES (1)"))
    Database(path).close()
    for _ in range(2):
        db = Database(path, migrations=later)
        assert [row["a"] for row in db.all("SELECT a FROM extra")] == [1]
        db.close()


def test_a_migration_that_fails_leaves_the_schema_before_it(tmp_path):
    path = tmp_path / "km.db"
    Database(path).close()
    broken = (*MIGRATIONS, ("CREATE TABLE extra (a INTEGER) STRICT", "INSERT INTO nowhere VALUES (1)"))
    with pytest.raises(ControlError):
        Database(path, migrations=broken)
    db = Database(path)
    assert db.one("SELECT 1 FROM sqlite_schema WHERE name = 'extra'") is None
    db.close()


def test_a_database_of_a_newer_km_is_refused_untouched(tmp_path):
    path = tmp_path / "km.db"
    Database(path, migrations=(*MIGRATIONS, ("CREATE TABLE extra (a INTEGER) STRICT",))).close()
    before = path.read_bytes()
    with pytest.raises(ControlError, match=f"schema {len(MIGRATIONS) + 1}, this km knows {len(MIGRATIONS)}"):
        Database(path)
    assert path.read_bytes() == before


def test_another_programs_database_is_refused(tmp_path):
    path = tmp_path / "km.db"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE bookmarks (a)")
    other.close()
    with pytest.raises(ControlError, match="not a database of km"):
        Database(path)


@pytest.mark.parametrize(
    "content", [b"not a database at all, not even nearly" * 100, b"SQLite format 3\x00" + b"\xff" * 5000]
)
def test_a_damaged_file_is_refused(tmp_path, content):
    path = tmp_path / "km.db"
    path.write_bytes(content)
    with pytest.raises(ControlError):
        Database(path)


def test_an_exception_takes_the_whole_transaction_back(tmp_path):
    db = Database(tmp_path / "km.db")
    with pytest.raises(KeyError), db.transaction():
        db.run("INSERT INTO counters VALUES ('a', 1)")
        raise KeyError
    assert db.all("SELECT * FROM counters") == []
    with pytest.raises(RuntimeError):
        db.run("INSERT INTO counters VALUES ('a', 1)")
    db.close()


def test_money_columns_hold_integers_only(tmp_path):
    db = Database(tmp_path / "km.db")
    with pytest.raises(sqlite3.IntegrityError), db.transaction():
        db.run("INSERT INTO counters VALUES ('a', 1.5)")
    db.close()


def test_only_commits_ask_for_a_sync(tmp_path):
    db = Database(tmp_path / "km.db")
    db.pending_sync()
    assert db.pending_sync() is None
    with db.transaction():
        db.run("INSERT INTO counters VALUES ('a', 1)")
    assert db.pending_sync() is not None
    assert db.pending_sync() is None
    db.close()


def test_a_directory_others_may_read_is_closed_to_them(tmp_path):
    path = tmp_path / "a" / "b"
    private_dir(path)
    assert path.stat().st_mode & 0o777 == 0o700
    path.chmod(0o755)
    private_dir(path)
    assert path.stat().st_mode & 0o777 == 0o700


def test_a_directory_others_may_write_to_is_refused(tmp_path):
    path = tmp_path / "a"
    path.mkdir()
    path.chmod(0o770)
    with pytest.raises(ControlError, match="others may write"):
        private_dir(path)


def test_a_link_is_refused_where_it_could_have_been_planted(tmp_path):
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ControlError):
        private_dir(tmp_path / "link")
    private_dir(tmp_path / "link", follow=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ControlError):
        private_dir(tmp_path / "file")


def test_a_directory_of_somebody_else_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a"
    private_dir(path)
    monkeypatch.setattr("os.geteuid", lambda: 4242)
    with pytest.raises(ControlError, match="belongs to uid"):
        private_dir(path, follow=True)


def test_a_key_is_made_once_and_refused_when_others_can_read_it(tmp_path):
    path = tmp_path / "k"
    assert read_key(path) is None
    key = make_key(path)
    assert read_key(path) == key
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ControlError):
        make_key(path)
    assert read_key(path) == key
    path.chmod(0o640)
    with pytest.raises(ControlError, match="open to others"):
        read_key(path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(ControlError, match="32 bytes"):
        read_key(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(ControlError):
        read_key(path)


def test_an_audit_directory_that_a_substrate_gave_to_its_gates_group_is_kept(tmp_path):
    """The sticky bit keeps the gate from replacing what kmd wrote; without it the directory is refused."""
    path = tmp_path / "audit"
    path.mkdir()
    path.chmod(0o1770)
    private_dir(path, shared=True)
    assert path.stat().st_mode & 0o7777 == 0o1770
    with pytest.raises(ControlError):
        private_dir(path)
    path.chmod(0o770)
    with pytest.raises(ControlError):
        private_dir(path, shared=True)
