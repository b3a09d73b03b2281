import itertools
from random import Random

import pytest

from cvt.config import CvTConfig, StageConfig
from cvt.networks.complexity import multiply_adds
from cvt.networks.supernet import GENES, chosen
from cvt.studies.search.space import Space
from cvt.system.errors import InputError

pytestmark = pytest.mark.slow

SIZE = (40, 56)


@pytest.fixture(scope="module")
def space():
    stages = [StageConfig(dim=8 * (i + 1), num_heads=i + 1, depth=depth, cls_token=i == 2)
              for i, depth in enumerate((1, 2, 1))]
    return Space(CvTConfig(stages=tuple(stages), num_classes=10, image_size=64), SIZE)


@pytest.fixture
def everything(space):
    return list(itertools.product(GENES, repeat=4))


def test_the_cost_of_any_choice_is_that_of_its_network(space):
    rng = Random(0)
    for _ in range(8):
        choice = tuple(rng.choices(GENES, k=4))
        assert space.multiply_adds(choice) == multiply_adds(chosen(space.config, choice), SIZE)


def test_the_range_and_the_number_within_a_budget_are_those_of_all(space, everything):
    costs = [space.multiply_adds(choice) for choice in everything]
    middle = sorted(costs)[100]

    assert (space.min_cost, space.max_cost) == (min(costs), max(costs))
    assert space.count(middle) == sum(cost <= middle for cost in costs)
    assert space.count(space.min_cost) == 1
    assert space.count(space.min_cost - 1) == 0
    assert space.count(10 * space.max_cost) == 4**4


def test_every_network_within_the_budget_is_drawn_equally_often(space, everything):
    budget = sorted(map(space.multiply_adds, everything))[11]
    allowed = [choice for choice in everything if space.multiply_adds(choice) <= budget]
    rng = Random(0)

    drawn = [space.draw(rng, budget) for _ in range(200 * len(allowed))]

    assert set(drawn) == set(allowed)
    assert all(150 < drawn.count(choice) < 250 for choice in allowed)


def test_a_budget_that_no_network_meets_is_rejected_with_the_cheapest_network(space):
    with pytest.raises(InputError, match=f"the cheapest takes {space.min_cost:,} at 40x56 pixels"):
        space.draw(Random(0), space.min_cost - 1)


def test_a_mutation_changes_at_least_one_block(space):
    rng, choice = Random(0), (GENES[0],) * 4
    changed = [sum(gene != GENES[0] for gene in space.mutate(choice, rng)) for _ in range(300)]

    assert min(changed) == 1
    assert max(changed) > 1
    assert sum(changed) / 300 == pytest.approx(1 + 3 * 0.1, abs=0.1)


def test_a_crossover_has_each_gene_from_one_of_its_parents(space):
    rng = Random(0)
    children = {space.crossover((GENES[0],) * 4, (GENES[3],) * 4, rng) for _ in range(200)}

    assert children == set(itertools.product((GENES[0], GENES[3]), repeat=4))
