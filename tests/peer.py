"""One of two processes of a run that ends badly: `python -m tests.peer HOW --coordinator_address=... ...`.

Process 1 does what HOW says while process 0 waits for it; HOW:0 turns them around. waits: for one that is not there.
"""

import os
import signal
import sys
import time

from tests.xla_flags import xla_flags

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = xla_flags(devices=2)

import jax
import numpy as np
from absl import app, logging
from jax._src.distributed import global_state

from mecap_jax import distributed
from mecap_jax.config import ConfigError, MeshConfig
from mecap_jax.interruption import Interrupted
from mecap_jax.sharding import all_rows, make_mesh
from mecap_jax.training.stopping import StopSignal, steps_under_way


def prepare(how: str) -> None:
    """What the first process does while the other one waits for it."""
    time.sleep(2)
    if how == "fails":
        sys.exit("error: no such directory: clips")
    print("prepared by", jax.process_index(), flush=True)


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # as the scripts do
    how, _, who = argv[1].partition(":")
    if how == "waits":
        distributed._PATIENCE_S = 3
    with distributed.joined(), StopSignal() as should_stop:
        all_rows(np.zeros(1))
        try:
            make_mesh(MeshConfig(tensor=4))
        except ConfigError as error:
            print(error, flush=True)
        if how in ("prepares", "fails"):
            distributed.first_process(lambda: prepare(how))
        print("joined", jax.process_count(), jax.device_count(), flush=True)
        if jax.process_index() == int(who or 1):
            if how == "raises":
                raise RuntimeError("the reward is on fire")
            if how == "exits":
                sys.exit("error: the disk is full")
            if how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
        if how == "dies":  # no connection of its own breaks: the runtime notices
            global_state.client.wait_at_barrier("never", 60_000)
        try:
            with steps_under_way() as begin_to_wait:
                begin_to_wait()
                if how == "stops" and jax.process_index() == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                for step in range(1, 1000):
                    if should_stop(step):
                        raise Interrupted(f"stopped after {step}")
        except Interrupted as stop:
            print(stop, flush=True)
            sys.exit(Interrupted.STATUS)


if __name__ == "__main__":
    app.run(main)
