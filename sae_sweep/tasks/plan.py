"""`task=plan`: shows the runs of a command, their groups, and the cost.

It writes nothing and loads no language model.
"""

import json
from typing import Any

from sae_sweep.config import SPARSITY_KEYS
from sae_sweep.logs import show
from sae_sweep.plan import Plan, Request, make_plan
from sae_sweep.plan.cost import (
    GroupCost,
    PlanCost,
    assumed_block_parameters,
    plan_cost,
    sae_shape,
)
from sae_sweep.plan.known import refuse_known_problems
from sae_sweep.plan.room import lacking, room
from sae_sweep.plan.throughput import given, measure
from sae_sweep.report import describe_plan
from sae_sweep.store import PlannedRun, cache_folder
from sae_sweep.tracking import refuse_wrong_names

_NOTES = (
    "LM tokens: without document separators and the unused rest of the last buffer.",
    "LM FLOPs: 2 x (weights of a block) + 4 x seq_len x d_model per token, for each block below the "
    "highest layer read; neither embedding nor logits.",
    "SAE FLOPs: 12 x d_in x d_sae per token (forward 4, backward 8), without AuxK.",
)


def show_plan(request: Request) -> int:
    """Run `task=plan`: print the plan in `format`; returns 0.

    Raises:
        ConfigError: if W&B would refuse a name that its variables give.
    """
    refuse_wrong_names(request.command.tracking)
    plan = make_plan(request)
    plan.refuse_another()
    document = describe(plan)
    as_json = request.command.format == "json"
    text = json.dumps(document, indent=2) if as_json else describe_plan(document)
    show(text + "\n")
    return 0


def describe(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values: `format=json` prints them, and the text is made from them."""
    texts = refuse_known_problems(plan.runs, cache_folder(plan.command.paths.cache))
    configs = [run.config for run in plan.runs]
    tflops = plan.command.plan.tflops
    throughput = measure(configs) if tflops is None else given(tflops, configs)
    cost = plan_cost(plan, throughput)
    return {
        "sweep": plan.sweep,
        "experiment": plan.command.experiment,
        "launcher": plan.command.launcher.kind,
        "fuse": plan.command.fuse,
        "runs": [_run(run) for run in plan.runs],
        "groups": [_group(group) for group in cost.groups],
        "cost": {**_totals(cost), "throughput": throughput.source, "cache_dtype": _dtypes(plan)},
        "room": room(plan)._asdict(),
        "notes": [*_NOTES, *_model_notes(plan), *texts],
        "lacking": lacking(plan, plan.runs),
    }


def _run(run: PlannedRun) -> dict[str, Any]:
    config = run.config
    shape = sae_shape(config)
    return {
        "name": run.name,
        "id": run.run_id,
        "group": run.group,
        "grids": list(run.grids),
        "model": config.model.label,
        "dataset": config.dataset.name,
        "layer": config.layer,
        "architecture": config.architecture.kind,
        "dictionary": config.dictionary,
        "d_sae": shape.d_sae if shape else None,
        **{key: getattr(config.architecture, key, None) for key in SPARSITY_KEYS},
        "seed": config.seed,
        "tokens": config.tokens,
    }


def _group(group: GroupCost) -> dict[str, Any]:
    first = group.runs[0]
    return {
        "group": first.group,
        "model": first.config.model.label,
        "dataset": first.config.dataset.name,
        "layers": group.layers,
        "runs": [run.name for run in group.runs],
        "lm_tokens": group.lm_tokens,
        "lm_tokens_solo": group.lm_tokens_solo,
        "sae_tokens": group.sae_tokens,
        "lm_flops": group.lm_flops,
        "sae_flops": group.sae_flops,
        "cache_bytes": group.cache_bytes,
    }


def _totals(cost: PlanCost) -> dict[str, Any]:
    return {
        "lm_passes": len(cost.groups),
        "lm_tokens": cost.lm_tokens,
        "lm_tokens_solo": cost.lm_tokens_solo,
        "sae_tokens": cost.sae_tokens,
        "lm_flops": cost.lm_flops,
        "sae_flops": cost.sae_flops,
        "cache_bytes": cost.cache_bytes,
        "hours": cost.hours,
        "tflops_sae": cost.tflops_sae,
        "tflops_lm": cost.tflops_lm,
    }


def _dtypes(plan: Plan) -> str:
    return ", ".join(dict.fromkeys(run.config.activations.dtype for run in plan.runs))


def _model_notes(plan: Plan) -> list[str]:
    """Notes on unknown or assumed properties of the models of this plan."""
    notes = []
    for model in dict.fromkeys(run.config.model for run in plan.runs):
        if model.shape is None:
            notes.append(
                f"{model.label}: its width is unknown until it loads, and with it d_sae, FLOPs, "
                "cache size and time."
            )
        elif model.block_parameters is None:
            notes.append(
                f"{model.label}: its blocks are unknown and assumed to be like GPT-2's, "
                f"12 x d_model^2 = {assumed_block_parameters(model):,} weights each."
            )
    return notes
