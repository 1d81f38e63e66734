"""An earlier demo is replaced when the new one can begin, but for the labels given in its gallery."""

import json
from pathlib import Path
from typing import Any

import pytest

from selfsight import api
from selfsight.demo import demo
from selfsight.errors import SelfsightError


def earlier(out: Path) -> None:
    (out / "gallery" / "digits").mkdir(parents=True)
    (out / "gallery" / "digits" / "labels.db").write_text("labels")
    (out / "pictures").mkdir()
    (out / "config.json").write_text(json.dumps({"data": str(out / "digits.npz")}))


def test_a_wrong_setting_removes_nothing(tmp_path: Path) -> None:
    earlier(tmp_path)
    with pytest.raises(SelfsightError, match="--minutes"):
        demo(tmp_path, 0.0)
    assert {path.name for path in tmp_path.iterdir()} == {"gallery", "pictures", "config.json"}


def test_labels_outlive_a_new_demo_which_may_be_stopped_at_any_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "pretrain", stopped)
    earlier(tmp_path)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            demo(tmp_path, 1.0)
        assert {path.name for path in tmp_path.iterdir()} == {"gallery", "digits.npz"}
        assert (tmp_path / "gallery" / "digits" / "labels.db").read_text() == "labels"
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SelfsightError, match="something else than a demo"):
        demo(tmp_path, 1.0)
