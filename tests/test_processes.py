"""Which of several processes leads, before they have met."""

import pytest

from selfsight.processes import leads


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
