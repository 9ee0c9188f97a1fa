"""What a recipe would need on devices that are not attached: memory, work, traffic, and whether it fits.

  python scripts/plan.py --config=configs/grpo.py:qwen2_5_omni_3b,lora --topology=v5e:4x4
  python scripts/plan.py --config=configs/grpo.py:qwen2_5_omni_3b --chip=v5p       # the smallest slice that it fits
  python scripts/plan.py --config=configs/grpo.py:qwen2_5_omni_3b --devices=8      # simulated CPU devices

The real programs of a step (sampling, reference, gradient, update) are compiled ahead of time from shapes alone;
weights are neither read nor allocated. Parameters are divided over all devices unless `--config.mesh.KEY` says
otherwise. For TPUs the compiler is `libtpu` (`pip install -e '.[plan]'`); no TPU is needed. `--output` keeps all
figures as JSON. The exit status is 1 where it does not fit.
"""

import functools
import os
import signal
import sys
from pathlib import Path

from mecap_jax.interruption import answer_signals

if __name__ == "__main__":  # before the imports that take seconds
    answer_signals({signal.SIGINT: 130})

from absl import app, flags, logging

from mecap_jax.command_line import local_paths, run, split_overrides
from mecap_jax.config import Config, ConfigError, load, validate_devices
from mecap_jax.text_files import error_message

_CONFIG = flags.DEFINE_string(
    "config", None, "Recipe: path/to/recipe.py[:argument], or a name that comes along: grpo.", required=True
)
_STAGE = flags.DEFINE_enum("stage", "grpo", ("sft", "grpo"), "Whose step is planned.")
_TOPOLOGY = flags.DEFINE_string("topology", "", "TPU slice, such as v5e:4x4.")
_CHIP = flags.DEFINE_string("chip", "", "TPU of which the smallest slice that fits is looked for: v5e, v5p, v6e.")
_DEVICES = flags.DEFINE_integer("devices", 0, "Simulated CPU devices in place of TPUs.", lower_bound=0)
_SECONDS = flags.DEFINE_float("seconds", 10.0, "Length of the clips.", lower_bound=0.1)
_TEXT = flags.DEFINE_integer("text_tokens", 128, "Tokens of text in a prompt.", lower_bound=1)
_KEPT = flags.DEFINE_bool("kept", False, "Only count what is kept; compile nothing.")
_OUTPUT = flags.DEFINE_string("output", "", "JSON file to write.")
local_paths("output")


def main(argv: list[str], overrides: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if sum(map(bool, (_TOPOLOGY.value, _CHIP.value, _DEVICES.value))) != 1:
        raise app.UsageError("one of --topology, --chip and --devices says for what it is planned")
    logging.set_verbosity(logging.WARNING)
    try:
        results = _plans(overrides)
        if _OUTPUT.value:
            from mecap_jax.json_files import write_json

            write_json(Path(_OUTPUT.value), {"plans": results})
    except (ConfigError, ValueError, OSError) as error:
        sys.exit(error_message(error))
    if "fits" in results[-1] and not results[-1]["fits"]:
        sys.exit(1)


def _plans(overrides: list[str]) -> list[dict]:
    import jax

    from mecap_jax.planning.chips import CHIPS, chip_of

    jax.config.update("jax_platforms", "cpu")  # nothing is to wait for an accelerator
    if _DEVICES.value:
        jax.config.update("jax_num_cpu_devices", _DEVICES.value)
        return [_plan(overrides, jax.devices(), None, f"{_DEVICES.value} CPU devices")]
    if _TOPOLOGY.value:
        return [_plan(overrides, _devices(_TOPOLOGY.value), chip_of(_TOPOLOGY.value), _TOPOLOGY.value)]
    if _CHIP.value not in CHIPS:
        raise ValueError(f"--chip: there is no {_CHIP.value!r}; there are {', '.join(CHIPS)}")
    results = []
    for shape in CHIPS[_CHIP.value].slices:
        topology = f"{_CHIP.value}:{shape}"
        results.append(_plan(overrides, _devices(topology), CHIPS[_CHIP.value], topology))
        if results[-1]["fits"]:
            break
    return results


def _devices(topology: str) -> list:
    from jax.experimental import topologies

    # What libtpu would ask of the machine is answered here: what is attached does not matter, nor who else plans.
    answers = {
        "SKIP_MDS_QUERY": "1",
        "ACCELERATOR_TYPE": "v5litepod-4",
        "WORKER_HOSTNAMES": "localhost",
        "WORKER_ID": "0",
    }
    os.environ.update({f"TPU_{name}": value for name, value in answers.items()} | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"})
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except (RuntimeError, ValueError) as error:
        if "libtpu" in str(error).lower() and "divisible" not in str(error):
            raise ValueError("libtpu is not installed: pip install -e '.[plan]'") from error
        raise ValueError(f"--topology: {topology}: {str(error).splitlines()[0]}") from error


def _plan(overrides: list[str], devices: list, chip, name: str) -> dict:
    from mecap_jax.data.fitting import bucket_for, describe_bucket
    from mecap_jax.planning.costs import plan
    from mecap_jax.sharding import make_mesh

    config: Config = load(_CONFIG.value, [f"mesh.fsdp={len(devices)}", *overrides])
    validate_devices(config, len(devices))
    bucket = bucket_for(_SECONDS.value, config.data, config.model, _TEXT.value)
    mesh = make_mesh(config.mesh, devices)
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
    print(f"{config.name}, {_STAGE.value}, {name} ({axes}): {describe_bucket(bucket)}", flush=True)
    tell = functools.partial(print, flush=True)
    result = plan(config, _STAGE.value, mesh, bucket, chip, tell, counted_only=_KEPT.value)
    _summarise(result, tell)
    return {"topology": name, **result}


def _summarise(result: dict, tell) -> None:
    kept = ", ".join(f"{name} {size:.2f}" for name, size in result["kept_gb"].items())
    tell(f"  kept on a device (GB): {kept}")
    of = f" of {result['memory_gb']:.1f}" if "memory_gb" in result else ""
    verdict = {True: ": fits", False: ": does not fit"}.get(result.get("fits"), "")
    tell(f"  needed: {result['needed_gb']:.2f} GB{of}{verdict}")
    if "seconds_at_least" in result:
        seconds = ", ".join(f"{name} {value:.3f}" for name, value in result["seconds_at_least"].items())
        tell(f"  a step takes at least (s): {seconds}; products at most {result['utilisation_at_most']:.0%} of it")
    if result["filled_up"]:
        tell(f"  {result['filled_up']:.0%} of the work is filled up with rows that do not count")


if __name__ == "__main__":
    arguments, config_overrides = split_overrides(sys.argv)
    run(lambda argv: main(argv, config_overrides), arguments)
