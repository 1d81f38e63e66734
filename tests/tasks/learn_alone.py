"""Learning from few labels as a program of its own, which Lightning can start twice."""

import sys
from pathlib import Path

import torch

from selfsight import backbones
from selfsight.tasks.classification import ClassificationConfig
from selfsight.tasks.curve import TrainConfig, train
from selfsight.tasks.learning import LearnConfig


def learn(data: str, out: Path, devices: int) -> None:
    """Fine-tune a tiny network with a tenth and with all labels, and print whether this process led."""
    torch.manual_seed(0)
    net = backbones.create(backbones.plan("test_resnet", 16, 1, (0.3,), (0.38,)))
    learning = LearnConfig(devices=devices, min_steps=6, max_steps=6, batch_size=32, lr=1e-3, checks=2, validation=0.2)
    settings = ClassificationConfig(pseudo_labels=0.5)
    config = TrainConfig(labels=(0.1, 1.0), seeds=1)
    trained = train(net, data, config, settings, learning, method="simclr", run="run", out=out)
    print("helped" if trained is None else "led")


if __name__ == "__main__":
    learn(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
