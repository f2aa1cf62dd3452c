"""`task=...` -> the function that does it. Nothing heavy is imported before it is needed."""

from sae_sweep.config import Config
from sae_sweep.plan.plan import Plan


def execute(plan: Plan) -> int:
    """Carry out a task about the runs of a plan; returns how many runs failed."""
    if plan.config.task == "plan":
        from sae_sweep.tasks.plan import show_plan

        return show_plan(plan)
    if plan.config.task == "cache":
        from sae_sweep.tasks.cache import fill_planned

        return fill_planned(plan)
    if plan.config.launcher.cluster != "inprocess":
        from sae_sweep.launch.cluster import train_on_cluster

        return train_on_cluster(plan)
    from sae_sweep.launch.inprocess import train

    return train(plan)


def answer(config: Config) -> int:
    """Carry out a task about what is on disk; returns how many runs failed, or how many files are damaged."""
    if config.task == "status":
        from sae_sweep.tasks.status import show_status

        return show_status(config)
    if config.task == "match":
        from sae_sweep.tasks.match import rematch

        return rematch(config)
    if config.task == "cache":
        from sae_sweep.tasks.cache import look_after

        return look_after(config)
    from sae_sweep.study.report import report

    return report(config)


def compare(plan: Plan) -> None:
    """Compare the finished runs of a plan that has just been carried out."""
    from sae_sweep.tasks.match import compare_finished

    compare_finished(plan.folder, plan.config)


def fingerprints(config: Config) -> dict[str, str]:
    """What a run id holds beside the config: the text and the weights of the LM."""
    from sae_sweep.activations import weights_fingerprint
    from sae_sweep.store import cache_folder
    from sae_sweep.text import fingerprint

    corpus = fingerprint(config.dataset, cache_folder(config.paths.cache))
    return {"corpus": corpus, "model": weights_fingerprint(config.model)}
