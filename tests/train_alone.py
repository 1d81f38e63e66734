"""A pretraining as a program of its own, which can be killed and which Lightning can start twice."""

import atexit
import sys
from collections.abc import Sequence

import torch.distributed as dist
import tyro


def train(argv: Sequence[str]) -> None:
    """Pretrain by SimCLR on a data set, the first argument, with the flags after it."""
    from selfsight.pretraining import pretrain
    from selfsight.training import Pretrain

    pretrain(argv[0], "simclr", tyro.cli(Pretrain, args=argv[1:]))


def main(argv: Sequence[str]) -> None:
    """Train; tell at the very end whether the processes are still connected."""
    # What is registered first runs last: selfsight, which registers its own, is imported later.
    atexit.register(lambda: dist.is_initialized() and print("still connected", file=sys.stderr))
    from selfsight.errors import SelfsightError
    from selfsight.nn import process
    from selfsight.processes import leads

    try:
        train(argv)
    except SelfsightError as error:
        sys.exit(str(error))
    print(process(), "leads" if leads() else "helps")


if __name__ == "__main__":
    main(sys.argv[1:])
