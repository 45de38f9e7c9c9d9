"""The policy under DeepSpeed: build, hand out weights, save, load, export. The only file that imports DeepSpeed.

Order matters. The process group comes first, because without it ZeRO-3 would silently partition over one rank. Then the
model is loaded, its weights partitioned as they are read (`HfDeepSpeedConfig`), and only then the engine is built. A
model *constructed* under ZeRO-3 would be initialised on empty tensors, so the loaded weights are compared with a plain
copy (`agreement.py`).
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import re
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.checkpoint import ds_to_universal
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils import logger as deepspeed_logger
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.integrations import HfDeepSpeedConfig

from pipeline.config.errors import UserError
from pipeline.config.recipe import PolicyConfig
from pipeline.config.training import OptimizerConfig
from pipeline.core.model_files import TOKENIZER_FILES
from pipeline.grpo.model.adapters import (
    adapted,
    adapter_parameters,
    add_adapters,
    merged,
    plain_name,
    save_adapter,
    without_adapters,
)
from pipeline.grpo.model.logprobs import PolicyLogprobs, checkpoint_layers
from pipeline.grpo.policy import distributed
from pipeline.grpo.policy.deepspeed_config import zero_stage
from pipeline.grpo.types import Batch, ResponseSampler
from pipeline.scoring.rotary import fix_rotary

_FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"

_IN_CHECKPOINTS = (LossScaler, ZeroStageEnum, fragment_address)
"""DeepSpeed's classes that its checkpoints contain, all plain values without behaviour."""

Engine = Any
"""`deepspeed.DeepSpeedEngine`, which has no type annotations. Its module is a `PolicyLogprobs`."""


def start() -> None:
    """Start the process group that the environment describes (`distributed.prepare_environment`)."""
    deepspeed_logger.setLevel(logging.WARNING)
    # DeepSpeed would compile an extension for all-reduces over shared memory, which needs half a minute and a C++
    # compiler and saves no measurable part of a step on CPUs.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    distributed.start(timedelta(hours=2))  # ranks wait for each other's rollouts, which can take long
    deepspeed.init_distributed(verbose=False)  # uses the existing group


def close(engine: Engine, sampler: ResponseSampler | None = None) -> None:
    """Release the engine and the sampler, and leave the process group."""
    engine.destroy()
    if sampler is not None:
        sampler.close()
    if torch.distributed.is_initialized():  # vLLM in this process destroys it itself
        torch.distributed.destroy_process_group()


def build(
    folder: Path,
    policy: PolicyConfig,
    optimizer: OptimizerConfig,
    topology: dict[str, Any],
    *,
    longest: int | None = None,
) -> Engine:
    """Build the engine of a policy and its optimizer. Every rank must call it, after `start`.

    Args:
        folder: a `transformers` folder.
        policy: precision, checkpointing, adapters.
        optimizer: AdamW's settings and the norm to clip at.
        topology: DeepSpeed configuration (`deepspeed_config.read_config`).
        longest: maximum tokens of a prompt and its response, as for `fix_rotary`.
    """
    config = _config(policy, topology) | {
        "managed_gradient_accumulation": False,  # the number of backwards per step varies with its micro-batches
        "gradient_clipping": optimizer.clip_norm,
        "zero_allow_untested_optimizer": True,
    }
    with _one_thread():
        module = _module(folder, policy, config, longest)
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        adamw = torch.optim.AdamW(trained, lr=optimizer.lr, betas=optimizer.betas, weight_decay=optimizer.weight_decay)
        engine, *_ = deepspeed.initialize(model=module, optimizer=adamw, config=config)
    return engine


@contextmanager
def _one_thread() -> Iterator[None]:
    """Within the context, limit operations to one OpenMP thread.

    Weights are loaded by several threads, and each would start its own team of OpenMP threads. GNU's OpenMP counts
    these for the life of the process, and once they outnumber the cores it lets every team sleep between operations:
    sampling then takes twice as long on two cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


Reference = Callable[[Batch, float], Tensor]
"""A batch and a temperature → log-probabilities [R, T] under the policy that training started from."""


def build_reference(
    engine: Engine, folder: Path, policy: PolicyConfig, topology: dict[str, Any], *, longest: int | None = None
) -> Reference:
    """Build the reference policy of the KL term. Every rank must call it, after `build`, and the function it returns.

    With adapters, the reference is the engine's own policy without them. Otherwise it is a frozen copy, partitioned
    like the trained policy under ZeRO-3.
    """
    reference = engine
    if not policy.lora:
        config = _config(policy, topology if zero_stage(topology) == 3 else {})
        with _one_thread():
            module = _module(folder, policy, config, longest).requires_grad_(False)
            reference, *_ = deepspeed.initialize(model=module, config=config)

    @torch.no_grad()
    def logprobs(batch: Batch, temperature: float) -> Tensor:
        with without_adapters(reference.module):
            logprobs_RT: Tensor = reference(batch, temperature)[0]
        return logprobs_RT

    return logprobs


def _config(policy: PolicyConfig, topology: dict[str, Any]) -> dict[str, Any]:
    return topology | {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "bf16": {"enabled": policy.dtype == "bfloat16"},
        "steps_per_print": 1 << 60,
    }


def _module(folder: Path, policy: PolicyConfig, config: dict[str, Any], longest: int | None) -> PolicyLogprobs:
    with _partitioned_loading(config):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, policy.dtype))
    fix_rotary(model, longest)
    if policy.lora:
        add_adapters(model, policy.lora)
    if policy.gradient_checkpointing:
        checkpoint_layers(model)
    return PolicyLogprobs(model)


def gathered_weights(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    """Yield names and full tensors of the policy, one at a time, adapters merged. Every rank must iterate to the end.

    A tensor is valid only until the next one is requested: copy it to keep it.
    """
    # An evaluation ends without the backward pass for which ZeRO-3 has begun to fetch parameters. It must not be asked
    # for those before they have arrived.
    engine.empty_partition_cache()
    model = engine.module.model
    layers = adapted(model)
    for name, parameter in model.named_parameters():
        plain = plain_name(name)
        if ".lora_" in name:
            continue
        if plain in layers:
            with deepspeed.zero.GatheredParameters([parameter, *adapter_parameters(layers[plain])]), torch.no_grad():
                yield plain, merged(layers[plain])
        else:
            with deepspeed.zero.GatheredParameters([parameter]):
                yield plain, parameter.data


def save(engine: Engine, folder: Path, state: dict[str, Any]) -> None:
    """Write weights, optimizer and `state` of every rank into `folder`. Every rank must call it."""
    engine.save_checkpoint(str(folder.parent), tag=folder.name, client_state={"run": state}, save_latest=False)


def load(engine: Engine, folder: Path) -> dict[str, Any]:
    """Load weights and optimizer that `save` wrote into the engine, and return this rank's `state`.

    Raises:
        UserError: the checkpoint cannot be read, or holds anything but tensors and plain values.
    """
    with _weights_only(folder):
        path, state = engine.load_checkpoint(str(folder.parent), tag=folder.name)
    if path is None:
        raise UserError("the checkpoint cannot be read", where=folder, hint="delete it to resume from an earlier one")
    return dict(state["run"])


@contextmanager
def _weights_only(folder: Path) -> Iterator[None]:
    """Within the context, restrict `torch.load` to tensors, plain values and `_IN_CHECKPOINTS`, whoever calls it.

    Checkpoints are pickles, and DeepSpeed would execute code in them; a run folder may come from an untrusted source.
    """
    before = os.environ.get(_FORCED)
    os.environ[_FORCED] = "1"
    try:
        with torch.serialization.safe_globals([*_IN_CHECKPOINTS]):
            yield
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|global:?|class) `?([\w.]+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise UserError(
            f"the checkpoint contains more than weights{what}; none of it was executed",
            where=folder,
            hint="do not resume a run from an unknown source; train into another --run folder",
        ) from error
    finally:
        os.environ.pop(_FORCED) if before is None else os.environ.update({_FORCED: before})


def load_redistributed(engine: Engine, folder: Path) -> dict[str, Any]:
    """Load a checkpoint of another number of ranks through DeepSpeed's universal format. Every rank must call it.

    Weights and moments are bit-identical to those saved; later steps differ by the order of sums over ranks.
    """
    if engine.zero_optimization_stage() == 0:
        return load(engine, folder)  # every rank holds the whole
    universal = folder.with_name(f".{folder.name}-universal")
    if distributed.rank() == 0:
        shutil.rmtree(universal, ignore_errors=True)
        with _weights_only(folder), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            ds_to_universal.main(
                Namespace(
                    input_folder=str(folder),
                    output_folder=str(universal),
                    num_extract_workers=1,
                    num_merge_workers=1,
                    keep_temp_folder=False,
                    inject_missing_state=False,
                    strict=True,
                )
            )
    distributed.barrier()
    engine._config.load_universal_checkpoint = True
    try:
        state = load(engine, universal)
    finally:
        engine._config.load_universal_checkpoint = False
    distributed.barrier()
    if distributed.rank() == 0:
        shutil.rmtree(universal)
        (folder.parent / "latest_universal").unlink()
    return state


def export(engine: Engine, policy: PolicyConfig, base: Path, folder: Path) -> None:
    """Write the current policy as a `transformers` folder, complete or not at all. Every rank must call it.

    Adapters are merged into it, and also written to a folder `adapter` beside it. The files of the tokenizer are those
    of the folder `base`, byte for byte: `transformers` may write others than it has read, and a run that starts from
    this policy accepts only shards of the same tokenizer.
    """
    main, model = distributed.rank() == 0, engine.module.model
    if policy.lora:
        adapters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        with deepspeed.zero.GatheredParameters(list(adapters.values())):
            if main:
                whole = [(name, parameter.detach().cpu().clone()) for name, parameter in adapters.items()]
                save_adapter(whole, policy.lora, policy.model, folder.with_name("adapter"))
    weights = {name: tensor.detach().cpu().clone() for name, tensor in gathered_weights(engine) if main}
    if main:
        temporary = folder.with_name(f".{folder.name}")
        for old in (temporary, folder):
            shutil.rmtree(old, ignore_errors=True)
        model.save_pretrained(temporary, state_dict=weights)
        for path in (path for pattern in TOKENIZER_FILES for path in base.glob(pattern)):
            shutil.copyfile(path, temporary / path.name)
        temporary.rename(folder)
    distributed.barrier()


@contextmanager
def _partitioned_loading(config: dict[str, Any]) -> Iterator[None]:
    """Within the context, make `from_pretrained` partition each weight as it is read if the topology is ZeRO-3."""
    alive = HfDeepSpeedConfig(config) if zero_stage(config) == 3 else None
    try:
        yield
    finally:
        del alive  # `transformers` holds only a weak reference, so later models are loaded whole again
