"""The run folder: whole files or none, metrics that can be continued."""

from pathlib import Path

import pytest
import torch
from torch import nn

from selfsight.errors import SelfsightError
from selfsight.methods.simclr import SimCLR
from selfsight.run import RunFolder, replace_file


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    replace_file(path, lambda p: p.write_text("old"))

    def fail(p: Path) -> None:
        p.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_may_have_the_longest_name_that_there_is(tmp_path: Path) -> None:
    path = tmp_path / ("猫" * 83 + ".txt")  # 253 bytes
    replace_file(path, lambda temporary: temporary.write_text("x"))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_metrics_take_new_columns_and_forget_what_was_after_a_checkpoint(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.append_metrics({"step": 1, "loss": 2.5})
    run.append_metrics({"step": 2, "loss": 2.0, "rankme": 30.25})
    run.append_metrics({"step": 3, "loss": 1.5})
    assert [row["rankme"] for row in run.metrics()] == ["", "30.25", ""]
    run.forget_metrics_after(2)
    assert [row["step"] for row in run.metrics()] == ["1", "2"]


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SelfsightError, match=r"config.json: not valid JSON"):
        RunFolder(tmp_path).config()


def test_a_method_is_saved_whole_even_where_its_parts_share_weights(tmp_path: Path) -> None:
    run, module = RunFolder(tmp_path), nn.Module()
    module.head = nn.Linear(3, 2)
    module.same = module.head
    module.register_buffer("centre", torch.arange(3.0))
    run.save_method(module)
    other = nn.Module()
    other.head = nn.Linear(3, 2)
    other.same = other.head
    other.register_buffer("centre", torch.zeros(3))
    run.load_method(other)
    assert torch.equal(other.head.weight, module.head.weight)
    assert torch.equal(other.get_buffer("centre"), torch.arange(3.0))


def test_a_run_without_its_method_or_with_another_one_is_named(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(SelfsightError, match=r"method.safetensors: no such file; pretrain again"):
        run.load_method(nn.Linear(2, 2))
    run.save_method(nn.Linear(2, 2))
    with pytest.raises(SelfsightError, match="written by another version"):
        run.load_method(nn.Linear(3, 2))


def test_weights_may_be_read_by_whom_the_other_files_may(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.save_method(nn.Linear(2, 2))
    other = tmp_path / "other.txt"
    other.touch()
    assert run.method_file.stat().st_mode == other.stat().st_mode


def test_settings_of_another_version_are_named(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_config({"method_config": {"temperature": 0.3}})
    assert run.settings(SimCLR.Config) == SimCLR.Config(temperature=0.3)
    run.write_config({"method_config": {"temperature": 0.3, "tau": 1}})
    with pytest.raises(SelfsightError, match=r"config.json: written by another version, with tau; pretrain again"):
        run.settings(SimCLR.Config)
