"""The profile of one packet's way finds every stage that it names in the server's code."""

import pytest

from benchmarks.bench_profile import WHOLE, measure, orders
from benchmarks.stages import RECEIVING, SENDING, Stage
from benchmarks.trees import HERE, Tree

pytestmark = [pytest.mark.root, pytest.mark.needs("taskset", "ip")]


@pytest.mark.parametrize(("inbound", "stages"), [(True, RECEIVING), (False, SENDING)], ids=["receiving", "sending"])
def test_every_stage_of_a_single_packet_is_found(inbound: bool, stages: tuple[Stage, ...]) -> None:
    costs = measure(Tree.of(HERE), orders(inbound, 4, 4)["single"])
    assert {stage.name for stage in stages} <= set(costs)
    assert costs[WHOLE] > 0
