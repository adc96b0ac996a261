from pathlib import Path

import pytest

from quarterhour.data.files import write_text


def test_a_link_laid_where_a_file_is_written_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mine = tmp_path / "mine"
    mine.write_text("precious")
    monkeypatch.setattr("os.getpid", lambda: 7)
    (tmp_path / ".result.json.7.tmp").symlink_to(mine)
    write_text(tmp_path / "result.json", "{}")
    assert mine.read_text() == "precious"
    assert (tmp_path / "result.json").read_text() == "{}"
    assert not (tmp_path / "result.json").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "result.json"]
