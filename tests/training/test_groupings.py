"""Property test: in any grouping and with any interruptions, a run ends with the weights it has alone."""

import dataclasses
import signal
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sae_sweep.config import ARCHITECTURES, RunConfig
from sae_sweep.signals import Interrupted
from sae_sweep.training import Member
from tests.training.fakes import make_config, make_member
from tests.training.helpers import assert_equal_bits, bare_loop, bits, kill, train


@dataclasses.dataclass(frozen=True)
class Spec:
    kind: str
    steps: int
    layer: int
    seed: int

    @property
    def config(self) -> RunConfig:
        keys: dict[str, Any] = {"k": 2} if "k" in ARCHITECTURES[self.kind].uses else {}
        return make_config(
            ARCHITECTURES[self.kind](**keys), steps=self.steps, layer=self.layer, seed=self.seed
        )


@cache
def alone(spec: Spec) -> dict[str, Any]:
    return bare_loop(spec.config, "id-any")


specs = st.builds(
    Spec, st.sampled_from(sorted(ARCHITECTURES)), st.integers(1, 9), st.integers(0, 2), st.integers(0, 1)
)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(specs, min_size=1, max_size=4), min_size=1, max_size=3), st.integers(1, 9))
def test_any_grouping_cut_anywhere_gives_the_same_bits(groups: list[list[Spec]], cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number, group in enumerate(groups):
            members = [_member(Path(folder), number, place, spec) for place, spec in enumerate(group)]
            members = [m._replace(run=dataclasses.replace(m.run, run_id="id-any")) for m in members]
            if max(spec.steps for spec in group) > cut:
                with suppress(Interrupted):
                    train(members, kill(signal.SIGTERM, at=cut))
            for spec, outcome in zip(group, train(members), strict=True):
                assert outcome.failed is None
                assert_equal_bits(bits(outcome), alone(spec))


def _member(folder: Path, number: int, place: int, spec: Spec) -> Member:
    return make_member(folder, f"{number}-{place}", spec.config)
