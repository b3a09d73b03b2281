import pytest

from cvt.config import CvTConfig, StageConfig
from cvt.studies.search.evolve import evolve, random_search, ranked
from cvt.studies.search.space import Space
from cvt.system.errors import InputError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def space():
    stages = [StageConfig(dim=8 * (i + 1), num_heads=i + 1, depth=depth, cls_token=i == 2)
              for i, depth in enumerate((1, 2, 4))]
    return Space(CvTConfig(stages=tuple(stages), num_classes=10, image_size=64), (64, 64))


@pytest.fixture
def budget(space):
    return (space.min_cost + space.max_cost) // 2


def score(choice):
    """An accuracy that a fine key grid raises in every other block, and a wide MLP everywhere."""
    return sum((stride == 1) * (i % 2) + (ratio == 4) for i, (stride, ratio) in enumerate(choice)
               ) / 100


def test_a_search_is_a_function_of_its_seed(space, budget):
    for search, more in ((random_search, {}), (evolve, {"population": 8})):
        one, again, other = (search(space, budget, score, evaluations=40, seed=seed, **more)
                             for seed in (0, 0, 1))
        assert one == again
        assert one != other


@pytest.mark.parametrize("seed", range(3))
def test_no_network_is_scored_twice_or_above_the_budget(space, budget, seed):
    for networks in (random_search(space, budget, score, evaluations=60, seed=seed),
                  evolve(space, budget, score, evaluations=60, population=8, seed=seed)):
        assert len({scored.choice for scored in networks}) == len(networks) == 60
        assert all(s.multiply_adds == space.multiply_adds(s.choice) <= budget for s in networks)
        assert all(s.top1 == score(s.choice) for s in networks)


def test_both_begin_with_the_same_networks(space, budget):
    chance = random_search(space, budget, score, evaluations=40, seed=0)
    bred = evolve(space, budget, score, evaluations=40, population=8, seed=0)

    assert bred[:8] == chance[:8]
    assert bred[8:] != chance[8:]


def test_evolution_finds_better_networks_where_good_ones_are_alike(space, budget):
    best = [[ranked(networks)[0].top1 for networks in (
                evolve(space, budget, score, evaluations=60, population=10, seed=seed),
                random_search(space, budget, score, evaluations=60, seed=seed))]
            for seed in range(6)]

    assert sum(bred for bred, _ in best) > sum(chance for _, chance in best)


def test_a_space_with_fewer_networks_than_evaluations_is_scored_whole(space):
    budget = space.min_cost + (space.max_cost - space.min_cost) // 40
    n = space.count(budget)
    assert 1 < n < 200

    networks = evolve(space, budget, score, evaluations=500, population=10, seed=0)

    assert len({scored.choice for scored in networks}) == n
    assert ranked(networks)[0].top1 == ranked(
        random_search(space, budget, score, evaluations=500, seed=1))[0].top1


def test_a_budget_that_nothing_meets_is_rejected_before_anything_is_scored(space):
    with pytest.raises(InputError, match="no network meets a budget of 5 multiply-adds"):
        evolve(space, 5, lambda _: pytest.fail("scored"), evaluations=4, population=2, seed=0)


def test_of_equals_the_cheaper_is_better(space, budget):
    networks = random_search(space, budget, lambda _: 0.5, evaluations=20, seed=0)

    assert ranked(networks)[0].multiply_adds == min(s.multiply_adds for s in networks)
