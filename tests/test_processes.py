"""Which of several processes leads, before they have met."""

import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from selfsight.errors import SelfsightError
from selfsight.processes import cluster, ending_helpers, expect, leads, require_all


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),  # Lightning's second machine
        ({"LOCAL_RANK": "0", "RANK": "2", "GROUP_RANK": "1"}, False),  # torchrun's
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, True),
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, False),
    ],
)
def test_one_process_of_all_machines_leads(
    environment: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert leads(), "alone, as one of many independent commands of a job"
    monkeypatch.setattr("selfsight.processes._expected", 4)
    assert leads() == first


def test_a_cluster_that_started_other_processes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_all(1)
    monkeypatch.setattr("selfsight.processes._expected", 8)
    require_all(8)
    with pytest.raises(SelfsightError, match=r"--devices, --nodes: 8 processes .* started 1; .*srun"):
        require_all(1)


def test_a_second_training_of_several_processes_in_a_program_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Helpers run the program from its beginning: they would come to the first training."""
    monkeypatch.setattr("selfsight.processes._parted", True)
    monkeypatch.setattr("selfsight.processes._expected", 2)
    with pytest.raises(SelfsightError, match="--devices, --nodes: one training of several processes"):
        expect(2)
    expect(1)
    assert leads()


def test_an_interactive_python_starts_no_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning would fork it, and what the forked processes learned would be lost."""
    monkeypatch.setattr("sys.ps1", ">>> ", raising=False)
    expect(1)
    with pytest.raises(SelfsightError, match="a notebook or an interactive Python can't start other processes"):
        expect(2)


def test_helpers_end_where_their_leader_fails() -> None:
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    launcher = _SubprocessScriptLauncher(LightningEnvironment(), num_processes=2, num_nodes=1)
    launcher.procs = [helper]
    trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=launcher))
    with ending_helpers(trainer):
        assert helper.poll() is None
    assert helper.poll() is None, "it ends by itself where all goes well"
    with pytest.raises(OSError, match="disk is full"), ending_helpers(trainer):
        raise OSError("disk is full")
    assert helper.wait(timeout=10) == -signal.SIGKILL
    alone = SimpleNamespace(strategy=SimpleNamespace(launcher=None))
    with pytest.raises(OSError, match="disk is full"), ending_helpers(alone):
        raise OSError("disk is full")


def test_slurm_keeps_no_checkpoints_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    assert cluster() == []
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "pretrain")
    (slurm,) = cluster()
    assert slurm.auto_requeue is False
