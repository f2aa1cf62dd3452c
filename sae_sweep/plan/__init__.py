"""The runs of a sweep: names, ids, groups, cost and measured throughput."""

from sae_sweep.plan.plan import Fingerprints, Plan, Request, WantedRun, make_plan

__all__ = ["Fingerprints", "Plan", "Request", "WantedRun", "make_plan"]
